"""What dataset.json says, as written by the builders of TRM and of HRM; what is wrong is in test_hostile_folders."""

import json

import pytest

from loopgrad.experiments.tasks.official_figures import Figures, check_names, read_figures

TRM = {  # as dataset/build_sudoku_dataset.py writes it
    "pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "vocab_size": 11, "seq_len": 81,
    "num_puzzle_identifiers": 1, "total_groups": 1000, "mean_puzzle_examples": 1, "total_puzzles": 1000,
    "sets": ["all"],
}  # fmt: skip


def test_figures_of_both_builders_are_read_and_others_passed_over(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({**TRM, "later": "than ours"}))
    figures = Figures(path, 11, 81, 1, 1000, 1.0, 1000)
    assert read_figures(path) == figures
    path.write_text(json.dumps({name: value for name, value in TRM.items() if name != "total_puzzles"}, indent=2))
    assert read_figures(path) == Figures(path, 11, 81, 1, 1000, 1.0, None)


def test_names_are_counted(tmp_path):
    path = tmp_path / "identifiers.json"
    path.write_text('["<blank>", "00576224", "00576224|||t3|||0123456789"]')
    check_names(path, 3)
    with pytest.raises(
        ValueError, match="identifiers.json: 3 names, and dataset.json says num_puzzle_identifiers is 2"
    ):
        check_names(path, 2)
