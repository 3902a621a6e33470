"""What other programs read back is what the log of a run holds, each number once, also after interruptions."""

import csv
import json
import sys
import types
import warnings

import pytest

from loopgrad.experiments.errors import Interrupted
from loopgrad.experiments.training import runs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that tensorboard loads
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NAMES = ("loss", "gradient_norm", "test_exact_accuracy", "learning_rate")


def log_of(folder):
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def numbers_of(log):
    return [(entry["step"], name, value) for entry in log for name, value in entry.items() if name != "step"]


def in_csv(folder):
    with open(folder / "scalars.csv", newline="") as file:
        return [(int(row["step"]), row["name"], float(row["value"])) for row in csv.DictReader(file)]


def on_board(folder, name):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


class Wandb(types.ModuleType):
    """What is used of the package, which takes note."""

    def __init__(self):
        super().__init__("wandb")
        self.made, self.logged, self.ended, self.step = [], [], 0, 0

    def Settings(self, **given):
        return given

    def init(self, **given):
        self.made.append(given)
        self.logged = [] if given["mode"] == "offline" else self.logged  # another file
        return self

    def log(self, numbers, step):
        self.logged.append((step, numbers))
        self.step = step + 1

    def finish(self):
        self.ended += 1


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", found := Wandb())
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return found


@pytest.fixture
def cut(loopgrad, tiny, monkeypatch):
    """Train in pieces: the command ends at steps that no checkpoint counts, as a kill would."""

    def run(*overrides, at=(3, 5)):
        command = ("train", *tiny, "trainer.train_steps=7", *overrides, "output_dir=out")
        trained = runs.train
        for step in at:

            def ends(run, *arguments, step=step):
                for entry in trained(run, *arguments):
                    yield entry
                    if entry["step"] == step:
                        raise KeyboardInterrupt

            monkeypatch.setattr(runs, "train", ends)
            assert loopgrad(*command).code == 130
        monkeypatch.setattr(runs, "train", trained)
        result = loopgrad(*command)
        assert result.code == 0, result

    return run


@pytest.mark.slow
def test_the_lines_of_a_csv_are_those_of_the_log(cut, tmp_path):
    cut("logger=csv")
    folder = tmp_path / "out" / "runs" / "last_cycle-seed0"
    assert in_csv(folder) == numbers_of(log_of(folder)) and len(log_of(folder)) == 7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scalars_for_tensorboard_are_those_of_the_log(cut, tmp_path):
    cut("logger=tensorboard")
    folder = tmp_path / "out" / "runs" / "last_cycle-seed0"
    log = log_of(folder)
    for name in NAMES:
        seen = on_board(folder, name)
        assert [step for step, _ in seen] == [entry["step"] for entry in log if name in entry]
        assert dict(seen) == pytest.approx({entry["step"]: entry[name] for entry in log if name in entry})


@pytest.mark.slow
def test_what_wandb_is_handed_is_the_log_each_step_once(cut, tmp_path, wandb):
    cut("logger=wandb")
    log = log_of(tmp_path / "out" / "runs" / "last_cycle-seed0")
    assert [step for step, _ in wandb.logged] == list(range(1, 8))
    assert [(step, name, value) for step, told in wandb.logged for name, value in told.items()] != []
    for entry, (step, told) in zip(log, wandb.logged, strict=True):
        assert told.keys() == entry.keys() - {"step"}
        assert all(told[name] == entry[name] for name in told if name != "seconds"), step
    assert len({made["id"] for made in wandb.made}) == 1 and wandb.ended == len(wandb.made) == 3
    (mode,) = {made["mode"] for made in wandb.made}
    assert mode == "offline" and wandb.made[0]["config"]["task"]["size"] == 4


@pytest.mark.slow
def test_a_server_is_sent_what_it_lacks(cut, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    handed = []
    log = Wandb.log
    monkeypatch.setattr(Wandb, "log", lambda self, told, step: (handed.append(step), log(self, told, step)))
    cut("logger=wandb")
    assert handed == list(range(1, 8))


@pytest.mark.slow
def test_the_mode_of_wandb_is_the_users_and_a_run_begun_anew_has_another_id(loopgrad, tiny, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    for more in ((), ("restart=true",)):
        assert loopgrad("train", *tiny, "logger=wandb", "output_dir=out", *more).code == 0
    assert [made["mode"] for made in wandb.made] == ["online", "online"]
    assert wandb.made[0]["id"] != wandb.made[1]["id"] and wandb.made[0]["resume"] == "allow"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_logger_that_comes_later_has_the_earlier_steps_too(loopgrad, tiny, tmp_path, wandb, monkeypatch):
    folder = tmp_path / "out" / "runs" / "last_cycle-seed0"
    trained = runs.train

    def run(logger, until):
        def ends(run, *arguments):
            for entry in trained(run, *arguments):
                yield entry
                if entry["step"] == until:
                    raise Interrupted("the run", until)

        monkeypatch.setattr(runs, "train", ends)
        return loopgrad("train", *tiny, "trainer.train_steps=9", f"logger={logger}", "output_dir=out").code

    assert [run(it, at) for it, at in (("none", 3), ("csv", 5), ("tensorboard", 7), ("wandb", 99))] == [130] * 3 + [0]
    assert [step for step, name, _ in in_csv(folder) if name == "loss"] == [1, 2, 3, 4, 5]
    assert [step for step, _ in on_board(folder, "loss")] == [1, 2, 3, 4, 5, 6, 7]
    assert [step for step, _ in wandb.logged] == list(range(1, 10))


def test_nothing_is_written_where_it_is_not_asked_for(compared):
    assert list(compared.rglob("train.jsonl"))
    assert not [*compared.rglob("*tfevents*"), *compared.rglob("scalars.csv"), *compared.rglob("wandb")]


@pytest.mark.parametrize(
    ("logger", "package", "extra"), [("tensorboard", "torch.utils.tensorboard", "log"), ("wandb", "wandb", "wandb")]
)
def test_a_missing_package_is_named(refused, tiny, monkeypatch, logger, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    assert f"pip install 'loopgrad[{extra}]'" in refused("train", *tiny, f"logger={logger}")


def test_wrong_loggers_and_the_key_of_before_are_refused_by_name(refused, tiny):
    assert "logger=tensorbord: must be one of none, csv" in refused("train", *tiny, "logger=tensorbord")
    assert "cannot do without logger" in refused("compare", *tiny, "logger=null")
    assert "no key tensorboard any more: say logger=tensorboard" in refused("train", *tiny, "tensorboard=true")
