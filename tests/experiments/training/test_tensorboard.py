"""TensorBoard reads back what the log of a run holds."""

import json
import sys
import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that tensorboard loads
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scalars_are_those_of_the_log(loopgrad, tiny, tmp_path):
    assert loopgrad("train", *tiny, "tensorboard=true", "output_dir=out").code == 0
    folder = tmp_path / "out" / "runs" / "last_cycle-seed0"
    log = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for name in ("loss", "gradient_norm", "test_exact_accuracy"):
        seen = {event.step: event.value for event in events.Scalars(name)}
        assert seen == pytest.approx({entry["step"]: entry[name] for entry in log if name in entry})


def test_nothing_is_written_where_it_is_not_asked_for(compared):
    assert list(compared.rglob("train.jsonl")) and not list(compared.rglob("*tfevents*"))


def test_a_missing_package_is_named(refused, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "pip install 'loopgrad[log]'" in refused("train", *tiny, "tensorboard=true")
