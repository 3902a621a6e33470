"""What commands write into a folder of results, by name: no more than that is ever removed from it."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from loopgrad.analysis.files import whole_name
from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError

RESULTS = re.compile(r"records\.jsonl|report\.(md|html)|config\.json")
FIGURES = re.compile(r"[\w.@-]+\.(png|svg|json|html|rows\.jsonl)")
OF_RUNS = re.compile(r"train\.jsonl|scalars\.csv|checkpoint\.pt|weights(-\d+)?\.safetensors")
OF_BOARDS = re.compile(r"events\.out\.tfevents\..+")
OF_WEIGHTS = re.compile(r".+\.json")


def check_inside(folder: Path, configuration: Mapping[str, Any]) -> None:
    """Check that what a command writes stays in its folder, which may itself be a link.

    Args:
        folder: The folder of a command.
        configuration: Tells the folders of its runs.

    Raises:
        ConfigError: A folder in it is a link to another place, or a file, or a file is a folder.
    """
    for name in ("runs", "weights", "figures"):
        _refuse_link(folder / name)
        if (folder / name).exists() and not (folder / name).is_dir():
            raise ConfigError(f"{folder / name} is no folder, and results go into one of that name: move it away")
    for name in (
        "config.json",
        "records.jsonl",
        "report.md",
        "report.html",
        *(f"{name}.{kind}" for name in ("comparison", "claim") for kind in ("png", "svg", "json")),
    ):
        if (folder / name).exists() and not (folder / name).is_file():
            raise ConfigError(f"{folder / name} is no file, and results go into one of that name: move it away")
    for run in _runs(folder, configuration):
        _refuse_link(run)
        _refuse_link(run / "tensorboard")
        _refuse_link(run / "wandb")


def _refuse_link(place: Path) -> None:
    if place.is_symlink():
        raise ConfigError(
            f"{place} is a link, and nothing is written or removed elsewhere: put a folder there, or make the whole of "
            "output_dir a link"
        )


def remove_parts(folder: Path, configuration: Mapping[str, Any]) -> None:
    """Remove what killed processes had begun to write and not finished; the caller holds the folder.

    Args:
        folder: The folder of a command.
        configuration: That of its results, which tells the folders of its runs.
    """
    places = [(folder, RESULTS), (folder, FIGURES), (folder / "figures", FIGURES), (folder / "weights", OF_WEIGHTS)]
    for place, names in [*places, *((run, OF_RUNS) for run in _runs(folder, configuration))]:
        for path in _files(place, folder):
            whole = whole_name(path.name)
            # a name such as .figure.json.1 others give as well
            if whole and names.fullmatch(whole) and (path.name.endswith(".part") or names in (RESULTS, OF_RUNS)):
                path.unlink(missing_ok=True)


def remove_results(folder: Path, configuration: Mapping[str, Any]) -> None:
    """Remove what commands have written for a configuration but for that itself; what others put beside it stays.

    Raises:
        ConfigError: Some of it is in another place, by a link, and would neither be removed nor begun anew.
    """
    check_inside(folder, configuration)
    runs = list(_runs(folder, configuration))
    for path in _files(folder, folder):
        if RESULTS.fullmatch(path.name) and path.name != "config.json":
            path.unlink(missing_ok=True)
    for run in runs:
        for place, names in ((run, OF_RUNS), (run / "tensorboard", OF_BOARDS)):
            for path in _files(place, folder):
                if names.fullmatch(path.name):
                    path.unlink(missing_ok=True)
    of_weights = [path for path in _files(folder / "weights", folder) if _is_of_weights(path)]
    stems = {path.stem for path in of_weights}
    figures = [path for path in _files(folder / "figures", folder) if FIGURES.fullmatch(path.name)]
    for path in [*of_weights, *(figure for figure in figures if figure.stem.rpartition("-")[0] in stems)]:
        path.unlink(missing_ok=True)
    boards = [run / "tensorboard" for run in runs]
    for place in (*boards, *runs, *(folder / name for name in ("runs", "weights", "figures"))):
        remove_if_empty(place)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder in which nothing is."""
    with suppress(OSError):
        folder.rmdir()


def _runs(folder: Path, configuration: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the folders of a configuration's runs; they are looked up, for a configuration may tell anything."""
    named, seeds = configuration.get("conditions", configuration.get("estimator")), configuration.get("seeds")
    if not isinstance(named, dict):
        return
    known = {str(seed) for seed in (*(seeds if isinstance(seeds, list) else ()), configuration.get("seed"))}
    with suppress(OSError):
        for path in list((folder / "runs").iterdir()):
            name, _, seed = path.name.rpartition("-seed")
            if name in named and seed in known:
                yield path


def _files(place: Path, folder: Path) -> list[Path]:
    """Return the files in a place below a folder; none where a link leads to it."""
    if any(it.is_symlink() for it in (place, *place.parents) if it.is_relative_to(folder) and it != folder):
        return []
    with suppress(OSError):
        return [path for path in place.iterdir() if path.is_symlink() or path.is_file()]
    return []


def _is_of_weights(path: Path) -> bool:
    """Return whether a file is the record of an analysis under the name that this gives it."""
    try:
        found = records.first(path)
    except ValueError:
        return False
    return isinstance(found.get("name"), str) and f"{records.slug(found['name'])}.json" == path.name
