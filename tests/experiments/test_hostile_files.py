"""Every known way of making a file run code, tried and refused: the rows of docs/security.md."""

import json
import os
import re
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from hostile import calls, fingerprint, nodes, pickled, placed, repacked, rewritten, yamls
from repository import ROOT
from safetensors.torch import load_file, save_file

from loopgrad.analysis.trace import Trace
from loopgrad.experiments.deltas.weights import find
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.tasks import Task
from loopgrad.experiments.training import checkpoint

SLOW = pytest.mark.slow  # as many again in another place
PLACES = ("task", "halting", *(pytest.param(place, marks=SLOW) for place in ("model", "trainer", "in a list")))


@pytest.fixture
def run(compared, tmp_path):
    """A copy of a run that can be tampered with."""
    return shutil.copytree(compared / "runs" / "last_cycle-seed0", tmp_path / "mine" / "last_cycle-seed0")


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A path that nothing may make, whatever is read."""
    place = tmp_path / "trap"
    place.mkdir()
    monkeypatch.syspath_prepend(str(place))
    yield place / "canary"
    assert not (place / "canary").exists(), "code ran"
    assert "module_of_evil" not in sys.modules


def used(place, **given):
    """Read weights and all that they are used with."""
    for weights in find(place, given, {}, None):
        task = weights.make_task()
        weights.make_trainer()
        weights.load(task)


def refusal(place, **given) -> str:
    with pytest.raises(ConfigError) as caught:
        used(place, **given)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 1000 and "weights_only" not in line
    return line


NAMES = list(nodes(__import__("pathlib").Path(__import__("tempfile").mkdtemp()) / "canary"))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_no_name_in_a_checkpoint_is_called_or_imported(run, canary, name, place):
    path = run / "checkpoint.pt"
    changed = placed(fingerprint(path), nodes(canary)[name], place)
    rewritten(path, fingerprint=json.dumps(changed))
    line = refusal(run)
    part = {"halting": "trainer", "in a list": "task"}.get(place, place)
    assert str(path) in line and f"give {part}= on the command line" in line


def test_what_the_user_gives_goes_before_and_the_rest_is_the_file_s_and_held_to_the_table(run, canary, tmp_path):
    path = run / "checkpoint.pt"
    told = fingerprint(path)
    for place in ("task", "model"):
        told = placed(told, nodes(canary)["open"], place)
    (tmp_path / "module_of_mine.py").write_text(
        "from loopgrad.experiments.tasks import Sudoku\nclass Mine(Sudoku):\n    pass\n"
    )
    sys.path.insert(0, str(tmp_path))
    own = {"task": {"_target_": "module_of_mine.Mine", "num_train": 40, "num_test": 16}}
    own["model"] = fingerprint(path)["model"]
    rewritten(path, fingerprint=json.dumps(told))
    used(run, **own)
    assert "give model= on" in refusal(run, task=own["task"])
    rewritten(path, fingerprint=json.dumps(placed(told, nodes(canary)["torch.load"], "trainer")))
    assert "trainer" in refusal(run, **own)
    used(
        run, **own, trainer={"_target_": "loopgrad.experiments.trainer.Trainer", "halting": told["trainer"]["halting"]}
    )
    assert issubclass(sys.modules["module_of_mine"].Mine, Task)
    sys.path.remove(str(tmp_path))


def test_a_class_of_the_user_s_own_in_a_file_is_refused_with_what_to_give(run):
    path = run / "checkpoint.pt"
    told = fingerprint(path)
    told["trainer"]["halting"] = {"_target_": "mine.Rule", "patience": 3}
    rewritten(path, fingerprint=json.dumps(told))
    line = refusal(run)
    assert "trainer.halting is of mine.Rule" in line or "trainer is of mine.Rule" in line
    assert "no class but loopgrad's own is taken from a file" in line and "give trainer= on the command line" in line


def test_a_name_of_our_own_in_the_wrong_place_is_refused(run):
    path, told = run / "checkpoint.pt", fingerprint(run / "checkpoint.pt")
    for place, other in (("task", told["model"]), ("model", told["task"]), ("halting", told["trainer"])):
        rewritten(path, fingerprint=json.dumps(placed(told, other, place)))
        assert "give " in refusal(run)


@pytest.mark.parametrize("way", ["plain", "archive", "legacy"])
@pytest.mark.parametrize("kind", ["exec", "system", "save"])
def test_no_pickle_of_a_checkpoint_or_of_weights_runs(run, canary, way, kind):
    evil = pickled({"format": 1, "average": {}, "fingerprint": calls(canary)[kind]}, way)
    (run / "checkpoint.pt").write_bytes(evil)
    assert "is not a checkpoint that can be read" in refusal(run)
    (run / "checkpoint.pt").unlink()
    (run / "weights.safetensors").write_bytes(evil)  # whatever its name says
    assert "cannot be read" in refusal(run / "weights.safetensors")


def test_no_pickle_hidden_in_an_archive_runs(run, canary):
    path = run / "checkpoint.pt"
    path.write_bytes(repacked(path.read_bytes(), {"data.pkl": pickled(calls(canary)["exec"], "plain")}))
    assert "objects other than tensors" in refusal(run)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", pickled(calls(canary)["exec"], "plain"))
        archive.writestr("m/constants.pkl", pickled(calls(canary)["exec"], "plain"))
    assert "TorchScript" in refusal(run)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", yamls(__import__("pathlib").Path("canary")))
def test_all_config_yaml_is_plain_values_and_bounded(tmp_path, canary, name):
    torch.save({"model.inner.L_level.layers.0.x": torch.zeros(2, 2)}, tmp_path / "step_1")
    (tmp_path / "all_config.yaml").write_text(yamls(canary)[name])
    line = refusal(tmp_path / "step_1", task={"_target_": "loopgrad.experiments.tasks.RollingSum", "length": 6})
    assert "all_config.yaml cannot be read" in line and (os.environ["HOME"] not in line or os.environ["HOME"] == "/")


def test_arrays_of_objects_are_not_read(tmp_path, canary):
    np.savez(tmp_path / "t.npz", header=np.array([calls(canary)["exec"]], dtype=object))
    with pytest.raises(ValueError, match="is not a trace"):
        Trace.load(tmp_path / "t.npz")
    assert "numpy arrays" in refusal(tmp_path / "t.npz", task={"_target_": "x"})


def test_metadata_of_safetensors_is_never_followed(run, canary):
    path = run / "weights.safetensors"
    save_file(load_file(path), path, metadata={"config": json.dumps(nodes(canary)["open"]), "path": "../../x"})
    used(run)


def test_links_and_dots_in_names_lead_to_no_other_place(run, tmp_path, loopgrad):
    (tmp_path / "elsewhere").mkdir()
    (run / "weights-000002.safetensors").symlink_to("/dev/zero")
    assert "no regular file" in refusal(run)
    (run / "weights-000002.safetensors").unlink()
    for name in ("weights-best", "weights-..", "weights-\u00b2", "weights-" + "9" * 100, "weights-1\n2"):
        shutil.copy(run / "weights.safetensors", run / f"{name}.safetensors")
    assert [weights.step for weights in find(run, {}, {}, None)] == [4]
    (tmp_path / "here").symlink_to(run.parent)
    (weights,) = find(tmp_path / "here" / ".." / "mine" / run.name, {}, {}, None)
    assert "/" not in weights.name.replace("/", "", 1) and ".." not in weights.name
    (found,) = find(run / "weights-best.safetensors", {}, {}, None)
    assert (found.step, found.name) == (None, "last_cycle-seed0/last_cycle-seed0@weights-best")


def test_a_pickled_configuration_is_not_run_anew(refused_as_typed, canary, tmp_path):
    (tmp_path / "config.pickle").write_bytes(pickled(calls(canary)["exec"], "plain"))
    for option in ("--experimental-rerun", "--experimental-r"):
        assert "unpickles a file" in refused_as_typed("train", option, "config.pickle")


@pytest.mark.parametrize(
    ("target", "key"), [("os.system", "command"), ("os.popen", "cmd"), ("subprocess.Popen", "args")]
)
def test_hydra_refuses_what_only_runs_commands_on_the_command_line_too(refused, canary, target, key):
    """The guard of hydra-core 1.3.8, which is why nothing older is asked for; what else the user names is called."""
    line = refused("compare", f"++estimator.mine={{_target_: {target}, {key}: 'touch {canary}'}}")
    assert f"estimator.mine: Target '{target}' is blocklisted" in line


def test_a_checkpoint_of_another_folder_is_no_part_of_a_run(run):
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    checkpoint.read(run / "checkpoint.pt", "x")
    for step in (True, -1, 2.5, None, "4"):
        torch.save({**content, "step": step}, run / "checkpoint.pt")
        assert "does not tell the step" in refusal(run)


def test_every_row_of_the_page_on_security_names_tests_that_exist():
    rows = [line for line in (ROOT / "docs" / "security.md").read_text().splitlines() if line.startswith("| ")][2:]
    written = "".join(path.read_text() for path in (ROOT / "tests" / "experiments").rglob("test_*.py"))
    assert len(rows) > 15
    for row in rows:
        names = re.findall(r"`(test_\w+)`", row.split(" | ")[-1])
        assert names, row
        assert all(f"def {name}(" in written for name in names), row
