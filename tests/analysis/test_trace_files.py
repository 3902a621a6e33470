"""A trace saved and loaded, and as a table and a dataset."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

from loopgrad.analysis import Trace, record
from loopgrad.analysis.recorder import Recorder
from loopgrad.gradients import Stationary


def a_trace(lags=2):
    cell = Stationary(lambda z, x: {"a.b": torch.cos(z["a.b"]), "ü/z": z["ü/z"] * float("nan")})
    state = {"a.b": torch.randn(3, 2, dtype=torch.float64), "ü/z": torch.ones(3, 1)}
    return record(cell, state, None, 4, lags=lags)


@pytest.mark.parametrize("lags", [0, 2])
def test_a_trace_comes_back_to_the_last_bit(tmp_path, lags):
    trace = a_trace(lags)
    trace.save(tmp_path / "run")  # the name is the user's
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    back = Trace.load(tmp_path / "run")
    for field in dataclasses.fields(Trace):
        before, after = getattr(trace, field.name), getattr(back, field.name)
        assert type(before) is type(after), field.name
        pairs = [(before, after)]
        if isinstance(before, dict):
            assert list(before) == list(after)
            pairs = [(before[name], after[name]) for name in before]
        for one, other in pairs:
            if isinstance(one, np.ndarray):
                assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
            else:
                assert one == other and type(one) is type(other)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    a_trace().save(path)
    before = path.read_bytes()
    monkeypatch.setattr(np, "savez_compressed", lambda file, **arrays: (file.write(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        a_trace().save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["run.npz"]


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "file.npz"
    np.savez(path, x=np.ones(2))
    foreign = [path.read_bytes(), b"", b"not a trace", b"PK\x03\x04 half a zip"]
    np.save(tmp_path / "array.npy", np.ones(3))
    foreign.append((tmp_path / "array.npy").read_bytes())
    for content in foreign:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"file.npz is not a trace: Trace.load reads what trace.save"):
            Trace.load(path)
    with pytest.raises(FileNotFoundError):
        Trace.load(tmp_path / "missing.npz")


def test_the_table_is_long_and_an_update_stands_where_it_led_to():
    pytest.importorskip("pandas")
    trace = a_trace()
    table = trace.to_pandas()
    assert list(table.columns) == ["step", "sample", "stream", "norm", "update", "relative", "cycle"]
    assert len(table) == 5 * 3 * 2
    row = table[(table.step == 3) & (table["sample"] == 1) & (table.stream == "a.b")].iloc[0]
    assert (row["norm"], row["update"]) == (trace.norm["a.b"][3, 1], trace.update["a.b"][2, 1])
    assert table[table.step == 0]["update"].isna().all()


def test_the_dataset_has_named_dimensions():
    pytest.importorskip("xarray")
    recorder = Recorder(period=2, lags=2)
    for i in range(5):
        recorder.push(z=torch.full((3, 1), float(i)))
    trace = recorder.trace()
    data = trace.to_xarray()
    assert dict(data.sizes) == {"stream": 1, "step": 5, "sample": 3, "lag": 2, "end": 2}
    assert float(data.cycle.sel(stream="z", step=4, sample=0)) == trace.cycle["z"][3, 0] == 2.0
    assert float(data.recurrence.sel(stream="z", lag=2, end=2, sample=0)) == 4.0
    assert data.attrs["period"] == 2 and data.row.values.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["pandas", "xarray"])
def test_a_missing_library_is_asked_for(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'loopgrad\[tables\]'"):
        getattr(a_trace(), f"to_{name}")()
