"""Folders of the official layout, beside numpy's own reading of their arrays."""

import json

import numpy as np
import official_folders
import pytest

from loopgrad.experiments.tasks import official_folder
from loopgrad.experiments.tasks.base import IGNORE
from loopgrad.experiments.tasks.official_folder import read_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return official_folders.write_arc(tmp_path_factory.mktemp("official") / "arc")


def arrays(folder, part):
    names = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
    return {name: np.load(folder / part / f"all__{name}.npy") for name in names}


@pytest.mark.parametrize("part", ["train", "test"])
def test_figures_and_indices_are_those_of_the_files(folder, part):
    found, stored = getattr(read_folder(folder), part), arrays(folder, part)
    told = json.loads((folder / part / "dataset.json").read_text())
    assert all(getattr(found.figures, name) == told[name] for name in ("vocab_size", "seq_len", "total_puzzles"))
    assert found.num_groups == told["total_groups"] == len(stored["group_indices"]) - 1
    assert np.array_equal(found.puzzle_ids, stored["puzzle_identifiers"])
    assert np.array_equal(found.puzzle_starts, stored["puzzle_indices"])
    for group in range(found.num_groups):
        first, last = stored["group_indices"][group : group + 2]
        starts = stored["puzzle_indices"][first : last + 1].tolist()
        assert {end - start for start, end in zip(starts, starts[1:], strict=False)} == {found.examples[group]}
        assert found.first_rows(np.array([group])).tolist() == list(range(starts[0], starts[1]))
    wanted = np.array([2, 0])
    parts = [found.first_rows(np.array([group])) for group in wanted]
    assert np.array_equal(found.first_rows(wanted), np.concatenate(parts))


def test_a_batch_has_the_identity_of_each_row_and_labels_that_are_not_scored(folder):
    found, stored = read_folder(folder).train, arrays(folder, "train")
    batch = found.batch(rows := np.arange(len(stored["inputs"]))[::-1])
    assert np.array_equal(batch.inputs.numpy(), stored["inputs"][rows])
    labels = stored["labels"].astype(int)
    assert np.array_equal(batch.labels.numpy(), np.where(labels == 0, IGNORE, labels)[rows])
    of_row = [
        identity
        for identity, start, end in zip(
            stored["puzzle_identifiers"], stored["puzzle_indices"], stored["puzzle_indices"][1:], strict=False
        )
        for _ in range(start, end)
    ]
    assert batch.puzzle_ids.tolist() == of_row[::-1]


@pytest.mark.parametrize(
    ("part", "name", "row"), [("train", "inputs", 0), ("train", "labels", 20), ("test", "labels", 1)]
)
def test_rows_are_checked_some_at_a_time_and_named_by_file_and_number(folder, monkeypatch, part, name, row):
    monkeypatch.setattr(official_folder, "_AT_ONCE", 36 * 7)
    seen = []

    def faults(inputs, labels):
        seen.append(len(inputs))
        tokens, wanted = {"inputs": inputs, "labels": labels}[name], arrays(folder, part)[name][row]
        yield name, (tokens == wanted).all(axis=1), "so it is"

    with pytest.raises(ValueError) as caught:
        read_folder(folder).check_rows(faults)
    assert str(caught.value) == f"{folder / part / f'all__{name}.npy'}, row {row}: so it is"
    assert max(seen) == 7


def test_links_to_files_that_lie_elsewhere_are_followed(folder, tmp_path):
    for path in (path for path in folder.rglob("*") if path.is_file()):
        link = tmp_path / path.relative_to(folder)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(path)
    assert np.array_equal(read_folder(tmp_path).train.puzzle_ids, read_folder(folder).train.puzzle_ids)


def test_nothing_is_read_that_a_folder_names_itself(folder, tmp_path):
    """The builders name one set, and a file's name is never made of what a folder says."""
    (tmp_path / "train").mkdir()
    told = json.loads((folder / "train" / "dataset.json").read_text())
    (tmp_path / "train" / "dataset.json").write_text(json.dumps({**told, "sets": [f"{folder}/train/all"]}))
    with pytest.raises(ValueError, match=r'sets must be \["all"\]'):
        read_folder(tmp_path)
