"""What is misspelt on the command line is refused in one line with the nearest name; what is right is taken."""

import json
from importlib.metadata import version

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins

from loopgrad.experiments.commands import train as train_command
from loopgrad.experiments.conf.nearest import nearest
from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.errors import ConfigError

# command, overrides, what the one line must contain
AS_TYPED = [
    ("compar", [], ["compare"]),
    ("", [], ["compare"]),
    ("compare", ["estimator"], ["key=value"]),
    ("compare", ["-m", "task=maze,sortng"], ["sorting"]),
    ("train", ["-m", "sead=0,1"], ["seed"]),
    ("compare", ["taks=sudoku4"], ["task"]),
    ("compare", ["workers=0"], ["workers=0", "at least 1"]),
    ("train", ["estimator=[bptt,one_step]"], ["use compare"]),
    ("bench", ["recursio"], ["recursion"]),
]
MISSPELT = [
    ("compare", ["task=sudoko4"], ["sudoku4"]),
    ("compare", ["task=null"], ["sudoku4", "sorting"]),
    ("compare", ["modle=trm"], ["model"]),
    ("compare", ["model=trmm"], ["trm"]),
    ("compare", ["experiment=smok"], ["smoke"]),
    ("compare", ["+experiment=smoke"], ["experiment="]),
    ("compare", ["estimator=[btpp]"], ["bptt"]),
    ("compare", ["estimator=[bptt,onestep]"], ["one_step"]),
    ("compare", ["estimator=[]"], ["estimator"]),
    ("compare", ["estimator=bptt,one_step"], ["[bptt,one_step]", "-m"]),
    ("compare", ["trainer.learning_rte=1"], ["trainer.learning_rate"]),
    ("compare", ["learning_rate=1"], ["trainer.learning_rate"]),
    ("compare", ["+lrr=3"], ["trainer.learning_rate"]),
    ("compare", ["++lrr=3"], ["trainer.learning_rate"]),
    ("compare", ["+trainer.lerning_rate=1"], ["trainer.learning_rate"]),
    ("compare", ["++trainer.lerning_rate=1"], ["trainer.learning_rate"]),
    ("compare", ["trainer={lerning_rate: 1}"], ["small"]),
    ("compare", ["model.h_cycles=1"], ["model.H_cycles"]),
    ("compare", ["model.num_puzzles=1"], ["+model.num_puzzles=1"]),
    ("compare", ["+model.seed=1"], ["not free"]),
    ("compare", ["trainer.learning_rate=abc"], ["trainer.learning_rate=abc", "float"]),
    ("compare", ["trainer.learning_rate=-1"], ["learning_rate"]),
    ("compare", ["trainer.learning_rate=.nan"], ["learning_rate"]),
    ("compare", ["trainer.train_steps=1.5"], ["int"]),
    ("compare", ["trainer.train_steps=0"], ["train_steps", "at least 1"]),
    ("compare", ["trainer.ema_decay=1"], ["ema_decay"]),
    ("compare", ["trainer.autocast=bf61"], ["bf16"]),
    ("compare", ["trainer.autocast=true"], ["bf16", "off"]),
    ("compare", ["trainer.device=gpu0"], ["gpu0"]),
    ("compare", ["trainer.device=meta"], ["device=meta"]),
    ("compare", ["trainer.batch_size=100000000000000"], ["trainer.batch_size", "at most"]),
    ("compare", ["trainer.halting.num_segments=0"], ["num_segments", "at least 1"]),
    ("compare", ["trainer.halting._target_=loopgrad.models.QHalt"], ["max_segments"]),
    ("compare", ["trainer.halting._target_=loopgrad.models.QHlt"], ["QHalt"]),
    ("compare", ["model._target_=loopgrad.modles.TRM"], ["loopgrad.modles.TRM"]),
    ("compare", ["model._target_=loopgrad.models"], ["class"]),
    ("compare", ["model.mixer=atention"], ["attention"]),
    ("compare", ["model.hidden_size=0"], ["model", "hidden_size", "at least 1"]),
    ("compare", ["estimator.last_cycle.num_cycle=2"], ["estimator.last_cycle.num_cycles"]),
    ("compare", ["+estimator.last_cycel.num_cycles=2"], ["estimator.last_cycle.num_cycles"]),
    ("compare", ["+estimator.last_cycle.num_steps=2"], ["num_steps", "num_cycles"]),
    ("compare", ["+estimator.mine._target_=loopgrad.gradients.TruncatedBTPP"], ["TruncatedBPTT"]),
    ("compare", ["+estimator.mine._target_=torch.nn.ReLU"], ["Estimator"]),
    ("compare", ["estimator.checkpointed.schedule=sqr"], ["sqrt"]),
    ("compare", ["estimator.checkpointed.schedule=0"], ["sqrt", "at least 1"]),
    ("compare", ["seeds=[0,0]"], ["twice"]),
    ("compare", ["seeds=abc"], ["seeds=[0,1,2]"]),
    ("compare", ["seeds=[]"], ["seeds=[0,1,2]"]),
    ("compare", ["seeds=[-1]"], ["at least 0"]),
    ("compare", ["workers=x"], ["workers=x"]),
    ("compare", ["timing_repeats=0"], ["timing_repeats=0"]),
    ("compare", ["timing_repeats=null"], ["timing_repeats"]),
    ("compare", ["restart=flase"], ["true or false"]),
    ("compare", ["output_dir=null"], ["output_dir"]),
    ("compare", ["output_dir=''"], ["output_dir"]),
    ("compare", ["~estimator"], ["estimator"]),
    ("train", ["~estimator"], ["estimator", "bptt"]),
    ("compare", ["~seeds"], ["seeds"]),
    ("compare", ["trainer.device=${nothing}"], ["nothing"]),
    ("compare", ["task.path=nowhere.csv"], ["nowhere.csv"]),
    ("train", ["seed=abc"], ["seed=abc"]),
    ("train", ["seed=[0,1]"], ["use compare"]),
    ("bench", ["bench.hiden_size=3"], ["bench.hidden_size"]),
    ("report", ["output_dri=x"], ["output_dir"]),
    ("cite", ["modle=hrm"], ["model"]),
]


def ids(cases):
    return [f"{command} {' '.join(overrides)}" for command, overrides, _ in cases]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("command", "overrides", "words"), AS_TYPED, ids=ids(AS_TYPED))
def test_a_command_that_is_misspelt_ends_in_one_line(refused_as_typed, command, overrides, words):
    line = refused_as_typed(command, *overrides)
    assert all(word in line for word in words)


# each composes a configuration
CASES = [case if i % 3 == 0 else pytest.param(*case, marks=pytest.mark.slow) for i, case in enumerate(MISSPELT)]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("command", "overrides", "words"), CASES, ids=ids(MISSPELT))
def test_what_is_misspelt_is_refused_with_the_nearest_name(refused, command, overrides, words):
    line = refused(command, *overrides)
    assert all(word in line for word in words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_here_is_refused(refused):
    assert "device=cuda" in refused("compare", "trainer.device=cuda")


def test_the_nearest_names_come_first_and_are_few():
    keys = [
        "trainer.learning_rate",
        "trainer.batch_size",
        "task.size",
        "model.hidden_size",
        *(f"k{i}" for i in range(30)),
    ]
    assert nearest("trainer.lerning_rate", keys) == "did you mean trainer.learning_rate?"
    assert nearest("hidden_size", keys) == "did you mean model.hidden_size?"
    assert nearest("traner.batch_size", keys) == "did you mean trainer.batch_size?"
    assert nearest("ZZZ", keys).count(",") == 20  # the twenty most alike, and a sign that there are more
    assert nearest("ZZZ", ["a", "b"]) == "there is: a, b"


def test_one_more_estimator_may_be_added_on_the_command_line(loopgrad):
    mine = ("+estimator.mine._target_=loopgrad.gradients.TruncatedBPTT", "+estimator.mine.num_steps=3")
    result = loopgrad("compare", *mine, "--cfg", "job")
    assert result.code == 0 and "num_steps: 3" in result.out
    config = composed("compare", ["++estimator.mine={_target_: loopgrad.gradients.BPTT}"])
    assert list(config.estimator) == ["bptt", "checkpointed", "last_cycle", "one_step", "mine"]


def test_another_halting_rule_may_be_chosen_on_the_command_line():
    rule = ["trainer.halting._target_=loopgrad.models.QHalt", "~trainer.halting.num_segments"]
    config = composed("compare", [*rule, "+trainer.halting.max_segments=3"])
    assert dict(config.trainer.halting) == {"_target_": "loopgrad.models.QHalt", "max_segments": 3}


def test_an_estimator_may_come_from_a_folder_of_the_user(loopgrad, refused, tmp_path):
    (tmp_path / "conf" / "estimator").mkdir(parents=True)
    text = "own:\n  _target_: loopgrad.gradients.TruncatedBPTT\n  num_steps: 5\n"
    (tmp_path / "conf" / "estimator" / "own.yaml").write_text(text)
    place = f"hydra.searchpath=[file://{tmp_path}/conf]"
    result = loopgrad("compare", place, "estimator=[bptt,own]", "--cfg", "job")
    assert result.code == 0 and "num_steps: 5" in result.out
    assert "own" in refused("compare", place, "estimator=[bptt,onw]")
    assert "task" in refused("compare", place, "taks=maze")
    result = loopgrad("compare", "--config-dir", f"{tmp_path}/conf", "estimator=[own]", "--cfg", "job")
    assert result.code == 0 and "num_steps: 5" in result.out


def test_help_shows_commands_groups_and_keys(loopgrad):
    result = loopgrad("--help")
    assert result.code == 0 and all(name in result.out for name in ("compare", "train", "bench", "report", "cite"))
    result = loopgrad("compare", "--help")
    assert result.code == 0 and "sudoku4" in result.out and "learning_rate" in result.out
    assert loopgrad().code == 2
    assert loopgrad("--version").out.strip() == version("loopgrad")


def test_a_sweep_runs_one_job_per_value_in_folders_of_their_own(loopgrad, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(train_command, "main", lambda config, *_: seen.append((config.seed, config.output_dir)))
    result = loopgrad("train", "-m", "seed=3,5", "output_dir=out")
    assert result.code == 2 and "none of the 2 jobs of this sweep has ended" in result.err  # nothing was trained
    assert seen == [(3, "out/0"), (5, "out/1")]
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "a sweep left something beside its results"


def test_what_the_user_typed_is_recorded_with_its_command(compared):
    (first, *_) = (compared / "records.jsonl").read_text().splitlines()
    assert json.loads(first)["command"].startswith("loopgrad compare experiment=smoke model.hidden_size=16 ")


def test_a_composed_configuration_holds_what_was_asked_for():
    config = composed("train", ["experiment=smoke", "trainer.learning_rate=0.5", "+model.num_puzzles=2"])
    assert config.trainer.learning_rate == 0.5 and config.trainer.train_steps == 6 and config.model.num_puzzles == 2
    with pytest.raises(ConfigError, match=r"experiment=smokes: there is no such experiment; did you mean smoke\?"):
        composed("train", ["experiment=smokes"])


def test_composing_within_a_command_leaves_its_configuration_alone():
    with initialize_config_module("loopgrad.experiments.conf", version_base="1.3"):
        mine = compose("train", ["trainer.train_steps=5"])
        before = GlobalHydra.instance().hydra
        assert composed("train", ["trainer.train_steps=7"]).trainer.train_steps == 7
        with pytest.raises(ConfigError):
            composed("train", ["trainer.train_step=7"])
        assert before is not None and GlobalHydra.instance().hydra is before
        assert compose("train", ["trainer.train_steps=5"]) == mine
    assert not GlobalHydra.instance().is_initialized()


def test_a_hydra_that_found_no_plugins_says_so(monkeypatch):
    """Where memory is short its search passes over those that cannot be loaded, and finds none."""
    monkeypatch.setattr(Plugins, "discover", lambda self, kind: [])
    with pytest.raises(OSError, match="memory is short, or hydra-core is not installed whole"):
        composed("train", [])
