"""Folders laid out as the dataset builders of HRM and TRM write them, of small puzzles of our own."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from loopgrad.experiments.tasks import Maze, Sudoku
from loopgrad.experiments.tasks.arc_grids import encode
from loopgrad.experiments.tasks.symmetry import random_symmetries

Puzzle = tuple[int, list[tuple[np.ndarray, np.ndarray]]]  # identity and examples: (input, label), tokens each
Groups = list[list[Puzzle]]


def write_part(folder: Path, groups: Groups, vocab_size: int, names: list[str], total_puzzles: int | None) -> None:
    """Write train/ or test/, array by array as the builders do."""
    results: dict[str, list[Any]] = {"inputs": [], "labels": [], "puzzle_identifiers": []}
    results |= {"puzzle_indices": [0], "group_indices": [0]}
    for group in groups:
        for identity, examples in group:
            for given, wanted in examples:
                results["inputs"].append(given.reshape(-1))
                results["labels"].append(wanted.reshape(-1))
            results["puzzle_indices"].append(len(results["inputs"]))
            results["puzzle_identifiers"].append(identity)
        results["group_indices"].append(len(results["puzzle_identifiers"]))
    folder.mkdir(parents=True)
    for name, values in results.items():
        array = np.stack(values) if name in ("inputs", "labels") else np.array(values, dtype=np.int32)
        np.save(folder / f"all__{name}.npy", array)
    told = {
        "pad_id": 0,
        "ignore_label_id": 0,
        "blank_identifier_id": 0,
        "vocab_size": vocab_size,
        "seq_len": int(results["inputs"][0].size),
        "num_puzzle_identifiers": len(names),
        "total_groups": len(groups),
        "mean_puzzle_examples": len(results["inputs"]) / len(results["puzzle_identifiers"]),
        "sets": ["all"],
    }
    told |= {} if total_puzzles is None else {"total_puzzles": total_puzzles}  # HRM's builders do not write it
    (folder / "dataset.json").write_text(json.dumps(told))
    (folder.parent / "identifiers.json").write_text(json.dumps(names))


def write_sudoku(folder: Path, size: int = 4, groups: int = 9, held_out: int = 5, augmentations: int = 0) -> Path:
    """Sudokus: a group is a board and its transforms, a puzzle each."""
    rng = np.random.default_rng(0)
    train, test = Sudoku(size=size, num_train=groups, num_test=held_out)._puzzles
    # tables of digits are of 64 bits, and so is what goes through them
    dtype = np.int64 if augmentations else np.uint8
    boards = []
    for i in range(groups):
        images = [(train.questions[i], train.answers[i])]
        for _ in range(augmentations):
            symmetry = random_symmetries(size, 1, rng)
            images.append(tuple(symmetry.apply(board[i : i + 1])[0] for board in (train.questions, train.answers)))
        boards.append([(0, [((given + 1).astype(dtype), (wanted + 1).astype(dtype))]) for given, wanted in images])
    held = [
        [(0, [((q + 1).astype(np.uint8), (a + 1).astype(np.uint8))])]
        for q, a in zip(test.questions, test.answers, strict=True)
    ]
    write_part(folder / "train", boards, size + 2, ["<blank>"], groups)
    write_part(folder / "test", held, size + 2, ["<blank>"], held_out)
    return folder


def write_mazes(folder: Path, size: int = 5, groups: int = 9, held_out: int = 5, augmented: bool = False) -> Path:
    """Mazes: a group is a maze, and if asked for its turned and mirrored images, a puzzle each."""
    parts = Maze(size=size, min_path=3, num_train=groups, num_test=held_out)._mazes
    for name, answers in zip(("train", "test"), parts, strict=True):
        mazes = []
        for answer in answers:
            turns = [np.rot90(answer, k) for k in range(4)] if augmented and name == "train" else [answer]
            images = turns + ([turn.T for turn in turns] if len(turns) > 1 else [])
            mazes.append([(0, [(np.where(it == 5, 2, it).astype(np.uint8), it.astype(np.uint8))]) for it in images])
        write_part(folder / name, mazes, 6, ["<blank>"], None)
    return folder


def write_arc(folder: Path, size: int = 6, tasks: int = 4, held_out: int = 3, augmentations: int = 2) -> Path:
    """Grids recoloured by a rule for each task: tasks whose pairs are all trained on, and some with pairs held out."""
    rng = np.random.default_rng(0)
    names, parts = ["<blank>"], {"train": [], "test": []}
    for task in range(tasks + held_out):
        rule = np.concatenate([[0], 1 + rng.permutation(9)])
        grids = [rng.integers(0, 10, rng.integers(1, size, 2)) for _ in range(3 + task % 2)]
        pairs = {"train": [(grid, rule[grid]) for grid in grids], "test": []}
        if task >= tasks:
            pairs = {"train": pairs["train"][:-1], "test": pairs["train"][-1:]}
        plans = [(0, np.arange(10)), *((int(rng.integers(8)), _colours(rng)) for _ in range(augmentations))]
        group: dict[str, list[Puzzle]] = {"train": [], "test": []}
        for number, (turn, colours) in enumerate(plans):
            of_colours = "".join(map(str, colours))
            names.append(f"task{task}" + f"|||t{turn}|||{of_colours}" * bool(number))
            for part, found in pairs.items():
                images = [tuple(_turned(colours[grid], turn) for grid in pair) for pair in found]
                shifted = rng.integers(len(images)) if part == "train" else None  # the only one that stays
                examples = [
                    _laid_out(*pair, size, rng if part == "train" and at != shifted else None)
                    for at, pair in enumerate(images)
                ]
                if examples:
                    group[part].append((len(names) - 1, examples))
        for part, puzzles in group.items():
            parts[part] += [puzzles] if puzzles else []
    for part, groups in parts.items():
        write_part(folder / part, groups, 12, names, sum(map(len, groups)))
    (folder / "test_puzzles.json").write_text("{}")
    return folder


def _colours(rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([[0], 1 + rng.permutation(9)])


def _turned(grid: np.ndarray, turn: int) -> np.ndarray:
    return np.rot90(grid, turn % 4).T if turn >= 4 else np.rot90(grid, turn)


def _laid_out(one: np.ndarray, other: np.ndarray, size: int, rng: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lay a pair out, both grids shifted alike by chance if there is a generator."""
    down, right = (
        0 if rng is None else int(rng.integers(0, size - max(one.shape[i], other.shape[i]) + 1)) for i in (0, 1)
    )
    found = []
    for grid in (one, other):
        tokens = np.zeros((size, size), dtype=np.uint8)
        tokens[down:, right:] = encode(grid, size).reshape(size, size)[: size - down, : size - right]
        found.append(tokens)
    return found[0], found[1]


FOLDERS = {"sudoku": write_sudoku, "maze": write_mazes, "arc": write_arc}
