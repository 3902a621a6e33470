"""What dataset.json and identifiers.json of a folder of the HRM and TRM builders say, as far as it is well formed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopgrad.analysis.text_lines import lines_of
from loopgrad.gradients.checks import is_int, is_number

LARGEST = 2**25  # rows, puzzles, identities: the published Sudoku-Extreme has 3.8 million
_MOST_BYTES, _MOST_OF_NAMES = 2**16, 2**26  # the names of ARC-AGI-2 with 1000 augmentations have 40 MB
_ZERO = ("pad_id", "ignore_label_id", "blank_identifier_id")
_COUNTS = ("vocab_size", "seq_len", "num_puzzle_identifiers", "total_groups")


@dataclass(frozen=True)
class Figures:
    """What a dataset.json says beside that padding, labels that are not scored, and no identity are 0.

    Attributes:
        path: The file.
        vocab_size: Number of tokens there are.
        seq_len: Tokens of an example.
        num_puzzle_identifiers: Number of identities, that of no puzzle included.
        total_groups: Groups of this part.
        mean_puzzle_examples: Examples of a puzzle, in the mean.
        total_puzzles: Puzzles, or groups; None where it is not said, as HRM's builders do not.
    """

    path: Path
    vocab_size: int
    seq_len: int
    num_puzzle_identifiers: int
    total_groups: int
    mean_puzzle_examples: float
    total_puzzles: int | None


def read_figures(path: Path) -> Figures:
    """Read a dataset.json; what else it says is passed over.

    Raises:
        ValueError: It cannot be read, lacks something, or says what no builder of HRM and TRM writes; the message
            begins with its path.
    """
    told = _json(path, _MOST_BYTES)
    if not isinstance(told, dict):
        raise ValueError(f"{path}: it must hold a JSON object")
    for name in (*_ZERO, *_COUNTS, "mean_puzzle_examples", "sets"):
        if name not in told:
            raise ValueError(f"{path}: it lacks {name}")
    for name in _ZERO:
        if not is_int(told[name]) or told[name] != 0:
            raise ValueError(f"{path}: {name} must be 0, as the builders of HRM and TRM write it")
    if told["sets"] != ["all"]:
        raise ValueError(f'{path}: sets must be ["all"], as the builders of HRM and TRM write it')
    for name in (*_COUNTS, *(["total_puzzles"] if "total_puzzles" in told else [])):
        if not is_int(told[name]) or not 1 <= told[name] <= LARGEST:
            raise ValueError(f"{path}: {name} must be an integer of 1 to {LARGEST}")
    mean = told["mean_puzzle_examples"]
    if not is_number(mean) or not 0 < mean <= LARGEST:
        raise ValueError(f"{path}: mean_puzzle_examples must be a number above 0, at most {LARGEST}")
    counts = {name: told[name] for name in _COUNTS}
    return Figures(path, **counts, mean_puzzle_examples=float(mean), total_puzzles=told.get("total_puzzles"))


def check_names(path: Path, count: int) -> None:
    """Check that an identifiers.json names so many identities.

    Raises:
        ValueError: It cannot be read, or does not; the message begins with its path.
    """
    names = _json(path, _MOST_OF_NAMES)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: it must hold a JSON list of names")
    if len(names) != count:
        raise ValueError(f"{path}: {len(names)} names, and dataset.json says num_puzzle_identifiers is {count}")


def _json(path: Path, most: int) -> Any:
    text = "\n".join(line for _, line in lines_of(path, most, most))
    if not text.strip():
        raise ValueError(f"{path}: it is empty")
    if text.startswith("version https://git-lfs"):
        raise ValueError(f"{path}: a pointer of Git LFS in place of the file: run `git lfs pull` to get it")
    if (brackets := text.count("[") + text.count("{")) > 1000:  # a list takes many times its room in memory
        raise ValueError(f"{path}: {brackets} brackets, and the builders of HRM and TRM write a list or an object")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits
        raise ValueError(f"{path}: not JSON that can be read: {str(error)[:80]}") from error
