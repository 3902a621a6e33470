"""loopgrad report: render tables, sentences and figures from records.jsonl alone.

loopgrad report output_dir=results/compare
"""

from omegaconf import DictConfig
from rich.console import Console

from loopgrad.experiments import records
from loopgrad.experiments.conf.values import Names
from loopgrad.experiments.folders import held, output_folder
from loopgrad.experiments.reports import claims, comparison, deltas, sweep


def main(config: DictConfig, names: Names, console: Console) -> None:
    """Render the report of the records in output_dir, of a comparison, an analysis, a claim or a sweep."""
    folder = output_folder(config.output_dir)
    if not (folder / "records.jsonl").exists() and (folder / "0").is_dir():
        with held(folder):
            sweep.render(folder, console)
        return
    first = records.first(folder / "records.jsonl")
    of = deltas if "depths" in first else claims if "contrasts" in first else comparison
    with held(folder):
        of.render(folder, console)
