"""loopgrad bench [NAME]: measure estimators beside other ways of computing the same gradient, in one run.

    loopgrad bench
    loopgrad bench trm bench.official_path=PATH

Times are medians of ratios of rounds run in turn; bytes and FLOPs are exact. Rows are kept as they end, in
NAME.rows.jsonl beside the record: a bench that was cut off goes on from there.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from loopgrad.experiments import provenance, records
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.kept import KeptLedger
from loopgrad.experiments.benches.shown import ShownRows
from loopgrad.experiments.conf.build import build
from loopgrad.experiments.conf.values import Names, check_count
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.folders import held, output_folder
from loopgrad.experiments.reports import bench_page
from loopgrad.experiments.reports.tables import console_table


def main(config: DictConfig, names: Names, console: Console) -> None:
    """Run the bench, print its table and store its record."""
    made = provenance.stamp()
    bench: Bench = build(config.bench, "bench")
    name = config.bench["_target_"].split(".")[-2]
    path = output_folder(config.output_dir) / f"{name}.json"
    if not isinstance(config.restart, bool):
        raise ConfigError(f"restart={config.restart}: must be true or false")
    check_count("bench.repeats", bench.repeats)
    check_count("bench.num_threads", bench.num_threads)
    torch.set_num_threads(bench.num_threads)
    with held(path.parent):  # before the measuring, which takes minutes
        _check_ours(path)
        _measure(bench, name, config, made, path, console)


def _check_ours(path: Path) -> None:
    """Check that a record would replace nothing but an earlier one.

    Raises:
        ConfigError: The file is somebody else's.
    """
    if not path.exists():
        return
    try:
        ours = {"bench", "rows"} <= records.first(path).keys()
    except ConfigError:
        ours = False
    if not ours:
        raise ConfigError(f"{path} is no record of a bench, and one goes there: choose another output_dir=")


def _measure(bench: Bench, name: str, config: DictConfig, made: dict[str, Any], path: Path, console: Console) -> None:
    rows: list[dict[str, Any]] = []
    streaming = False
    record = {
        "bench": OmegaConf.to_container(config.bench, resolve=True),
        "rows": rows,
        **made,
        "device": provenance.device_name(bench.place()),
    }
    about = {key: record[key] for key in ("bench", "versions", "commit", "device")}
    with ShownRows(name, console) as shown:
        ledger = KeptLedger(path.with_suffix(".rows.jsonl"), about, shown, config.restart)
        for remark in ledger.remarks:
            console.print(remark)
        if ledger.count:
            console.print(f"{name}: goes on with what {ledger.path} does not hold")
        try:
            found = bench.rows(ledger)
            for row in found:
                rows.append(row)
                if streaming := isinstance(found, Iterator):  # it may take minutes to the next
                    records.write(path, [{**record, "unfinished": True}])
                    console.print(_line(row))
        except ConfigError:
            raise
        except (ValueError, ImportError) as error:  # sizes that do not fit, or a checkout that cannot be imported
            raise ConfigError(f"bench: {error}") from error
    if not rows:
        raise ConfigError("bench: these values leave nothing to measure")
    if not streaming:
        console.print(_table(rows))
    if text := bench.text(rows):
        console.print(text + "\n")
    records.write(path, [record])
    try:
        bench.figures(rows, path.parent)
    except ImportError as error:
        console.print(f"No figure: {error}")
    console.print(f"Record: {path}, page: {bench_page.render(path)}")
    ledger.remove()


def _table(rows: list[dict[str, Any]]) -> Table:
    header = [key for key, value in rows[0].items() if not isinstance(value, list)]
    shown = [[_shown(row[key]) for key in header] for row in rows]
    return console_table(header, shown, [key for key in header if isinstance(rows[0][key], str)])


def _line(row: dict[str, Any]) -> str:
    """Return a row in one line: words as they are, numbers with their names."""
    told = {key: value for key, value in row.items() if value is not None and not isinstance(value, list)}
    return "  ".join(value if isinstance(value, str) else f"{key} {_shown(value)}" for key, value in told.items())


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}" if 0.01 <= abs(value) < 1e4 or value == 0 else f"{value:.1e}"
    return str(value)
