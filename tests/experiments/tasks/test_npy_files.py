"""Arrays in files beside numpy's own reading of them; what is wrong with one is in test_hostile_folders."""

import os
import pickle

import numpy as np
import pytest

from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.tasks import npy_files
from loopgrad.experiments.tasks.npy_files import stored_array


@pytest.mark.parametrize("dtype", ["u1", "<i2", "<i4", ">i4", "<i8", "<u8"])
def test_rows_are_those_that_numpy_reads(tmp_path, dtype):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(200, dtype=dtype).reshape(40, 5))
    stored, rows = stored_array(path, 2, 10_000), np.array([3, 39, 3])
    assert stored.shape == (40, 5) and len(stored) == 40 and stored.dtype == np.dtype(dtype)
    assert np.array_equal(stored[rows], np.load(path)[rows]) and np.array_equal(stored[2:4], np.load(path)[2:4])


def test_a_header_of_the_second_version_is_read(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array(file, np.arange(7), version=(2, 0))
    assert stored_array(tmp_path / "a.npy", 1, 10_000)[:].tolist() == list(range(7))


def test_another_process_is_told_where_an_array_lies_and_not_what_it_holds(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((1000, 50), dtype=np.int64))
    stored = stored_array(tmp_path / "a.npy", 2, 10**6)
    stored[0]
    content = pickle.dumps(stored)
    assert len(content) < 1000 and np.array_equal(pickle.loads(content)[:], stored[:])


def test_a_file_that_was_changed_after_it_was_checked_is_not_read(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(7))
    stored = stored_array(tmp_path / "a.npy", 1, 10_000)
    os.utime(tmp_path / "a.npy", ns=(0, 0))
    with pytest.raises(ConfigError, match="a.npy: it was changed after it had been checked"):
        stored[0]
    (tmp_path / "a.npy").unlink()
    with pytest.raises(ConfigError, match="a.npy: cannot be read: No such file"):
        stored[0]


def test_nothing_but_the_header_is_read_before_the_size_is_known(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.arange(10_000))
    with pytest.raises(ValueError, match="at most 9999 are read"):
        stored_array(tmp_path / "a.npy", 1, 9999)

    def mapped(*_):
        raise AssertionError("the array was mapped")

    monkeypatch.setattr(npy_files.np, "memmap", mapped)
    assert stored_array(tmp_path / "a.npy", 1, 10**6).shape == (10_000,)
