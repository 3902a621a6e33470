"""Configuration files of the user's own: bounded before Hydra reads them, for a few lines of YAML can mean billions."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from loopgrad.experiments.errors import ConfigError

MOST_FILES = 10_000
MOST_BYTES = 2**20
MOST_VALUES = 100_000


def check_folder(folder: Path) -> None:
    """Check every YAML file below a folder; what is no folder is left to Hydra.

    Raises:
        ConfigError: There are too many files, or one is too large, or its aliases multiply to too much.
    """
    for number, path in enumerate(_below(folder)):
        if number >= MOST_FILES:
            raise ConfigError(f"{folder}: holds more than {MOST_FILES} files: name the folder of the configurations")
        if path.suffix in (".yaml", ".yml") and path.is_file():
            _check_file(path)


def _below(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.rglob("*")
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error


def _check_file(path: Path) -> None:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path}: is larger than {MOST_BYTES // 2**20} MiB, too large for a configuration")
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        values = _values(root, {}) if root is not None else 0
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deeply, or refers to itself") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    if values == float("inf"):
        raise ConfigError(f"{path}: refers to itself")
    if values > MOST_VALUES:
        raise ConfigError(f"{path}: its aliases stand for {values:.0e} values; at most {MOST_VALUES} can be read")


def _values(node: yaml.Node, known: dict[int, float]) -> float:
    """Return how many values a node stands for, each alias counted as what it repeats."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # met again below itself, it has no end
        parts = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]
