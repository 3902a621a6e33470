"""loopgrad report [FOLDER ...]: render tables, sentences and figures from records alone.

    loopgrad report results/compare
    loopgrad report results/here results/there output_dir=results/both

Several folders of comparisons are set side by side; pool=true puts the seeds of the same estimator together, if they
are comparable.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from loopgrad.experiments import records
from loopgrad.experiments.conf.values import Names
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.folders import held, output_folder
from loopgrad.experiments.reports import bench_page, claims, comparison, deltas, side_by_side, sweep


def main(config: DictConfig, names: Names, console: Console) -> None:
    """Render the report of the records in output_dir, whatever they are of, or of several folders."""
    if not isinstance(config.pool, bool):
        raise ConfigError(f"pool={config.pool}: must be true or false")
    if config.folders is not None:
        return _together(config, console)
    if config.pool:
        raise ConfigError("pool=true: puts seeds of several folders together, and none is given: folders=[A,B]")
    folder = output_folder("results/compare" if config.output_dir is None else config.output_dir)
    render(folder, console)


def render(folder: Path, console: Console) -> None:
    """Write the report of the records in a folder: of a comparison, a claim, an analysis, a sweep or benches.

    Raises:
        ConfigError: There are no records, or no report can be made of them.
    """
    if not (folder / "records.jsonl").exists():
        if (folder / "0").is_dir():
            with held(folder):
                sweep.render(folder, console)
            return
        if folder.is_dir() and (found := bench_page.of_folder(folder)):
            with held(folder):
                for path in found:
                    console.print(f"Page: {bench_page.render(path)}")
            return
    first = records.first(folder / "records.jsonl")
    of = deltas if "depths" in first else claims if "contrasts" in first else comparison
    with held(folder):
        of.render(folder, console)


def _together(config: DictConfig, console: Console) -> None:
    given: Any = OmegaConf.to_container(config.folders) if OmegaConf.is_list(config.folders) else config.folders
    if not isinstance(given, list) or not 2 <= len(given) <= side_by_side.MOST_FOLDERS:
        most = side_by_side.MOST_FOLDERS
        raise ConfigError(f"folders={config.folders}: must be a list of 2 to {most} folders of comparisons")
    folders = [output_folder(it, "folders") for it in given]
    if len({path.resolve() for path in folders}) < len(folders):
        raise ConfigError(f"folders={config.folders}: one of them is named twice")
    folder = output_folder("results/side_by_side" if config.output_dir is None else config.output_dir)
    if _has_results(folder):
        raise ConfigError(f"output_dir={folder}: holds results of its own: choose another for the report of several")
    for path in folders:
        records.first(path / "records.jsonl")  # before a folder is made
    with held(folder):
        side_by_side.render(folders, folder, config.pool, console)


def _has_results(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("records.jsonl", "config.json", "sweep.json", "0"))
