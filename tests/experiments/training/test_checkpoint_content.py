"""Whatever a checkpoint lacks or has wrong is refused in one line before anything of it is in the run."""

import copy
import json
import random

import numpy as np
import pytest
import torch
from small_runs import TASK, model, trainer

from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.training import checkpoint, random_states
from loopgrad.experiments.training.loop import begin, train
from loopgrad.gradients import BPTT, RandomTruncation

TOLD = {"seed": 0}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The content of a checkpoint after two steps."""
    it, path = trainer(), tmp_path_factory.mktemp("stored") / "c.pt"
    run = begin(it, TASK, model(), 0)
    steps = train(run, it, TASK, BPTT(), 0)
    next(steps), next(steps)
    checkpoint.save(path, run, BPTT(), TOLD)
    return torch.load(path, weights_only=True)


def state_of(run):
    tensors = [*run.model.state_dict().values(), *run.average.state_dict().values(), *run.carry.tensors().values()]
    tensors += [run.exploration.get_state(), torch.get_rng_state()]
    moments = copy.deepcopy(run.optimizer.state_dict())
    return run.step, [t.clone() for t in tensors], str(moments), random.getstate(), str(np.random.get_state())


def same(one, other):
    return one[0] == other[0] and all(map(torch.equal, one[1], other[1])) and one[2:] == other[2:]


def put(content, path, value):
    """The content with the part at a path of keys replaced, or taken away where the value is None."""
    changed = copy.deepcopy(content)
    *way, last = path
    place = changed
    for key in way:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value(place[last]) if callable(value) else value
    return changed


def python_state(change):
    version, internal, gauss = json.loads(random_states.take()["python"])
    return json.dumps(change(version, internal, gauss))


PARTS = ("fingerprint", "step", "model", "average", "optimizer", "carry", "exploration", "generators")
TENSOR = ("model", "lm_head.weight")
WRONG = {
    **{f"no {part}": ((part,), None, part if part != "fingerprint" else "configuration") for part in PARTS},
    **{f"{part} a list": ((part,), [1], part if part != "fingerprint" else "configuration") for part in PARTS},
    "no format": (("format",), None, "none that loopgrad wrote"),
    "format a flag": (("format",), True, "format"),
    "format a tensor": (("format",), torch.ones(3), "format"),
    "another format": (("format",), 7, "format 7"),
    "step a flag": (("step",), True, "step"),
    "step below 0": (("step",), -1, "step is -1"),
    "step a float": (("step",), 2.0, "step"),
    "fingerprint no JSON": (("fingerprint",), "{", "configuration"),
    "fingerprint a list": (("fingerprint",), "[1]", "configuration"),
    "fingerprint deep": (("fingerprint",), "[" * 100_000, "configuration"),
    "fingerprint long digits": (("fingerprint",), '{"seed": ' + "9" * 10_000 + "}", "configuration"),
    "a tensor missing": (TENSOR, None, r"model\.lm_head\.weight is missing"),
    "a tensor more": (("model", "more"), torch.zeros(1), r"model\.more is nothing that belongs"),
    "a tensor smaller": (TENSOR, lambda t: t[:1].clone(), r"model\.lm_head\.weight is \(1, 16\) float32, not"),
    "a tensor of another type": (TENSOR, lambda t: t.double(), "float64, not"),
    "a tensor stretched": (TENSOR, lambda t: torch.zeros(1).expand(t.shape), "shows more numbers"),
    "a tensor sparse": (TENSOR, lambda t: t.to_sparse(), "no dense tensor"),
    "a number for a tensor": (TENSOR, 3.0, "not a tensor"),
    "average without its prefix": (("average", "n_averaged"), None, "n_averaged is missing"),
    "moments of another shape": (("optimizer", "state", 0, "exp_avg"), lambda t: t[:1].clone(), r"exp_avg is \(1,"),
    "moments missing": (("optimizer", "state", 0, "exp_avg_sq"), None, "exp_avg_sq is missing"),
    "moments of no parameter": (("optimizer", "state", 99), {}, r"optimizer\.state\.99 is nothing"),
    "moments a list": (("optimizer", "state"), [], "optimizer"),
    "a token outside": (("carry", "carry.batch.inputs"), lambda t: t + 1000, "numbers outside 0..2"),
    "a label outside": (("carry", "carry.batch.labels"), lambda t: t - 7, "numbers outside"),
    "a puzzle outside": (("carry", "carry.batch.puzzle_ids"), lambda t: t - 1, "numbers outside"),
    "segments below 0": (("carry", "carry.segment"), lambda t: t - 9, "below 0"),
    "a smaller carry": (("carry", "carry.halted"), lambda t: t[:1].clone(), "carry.halted"),
    "exploration zeros": (("exploration",), torch.zeros_like, "no random number generator"),
    "torch's state zeros": (("generators", "torch"), torch.zeros_like, "no random number generator"),
    "numpy's position": (("generators", "numpy", 2), 10**6, "no random number generator"),
    "numpy's position below 0": (("generators", "numpy", 2), -5, "no random number generator"),
    "numpy's name": (("generators", "numpy", 0), "MT", "no random number generator"),
    "numpy's keys": (("generators", "numpy", 1), lambda t: t[:9].clone(), "numpy"),
    "python's state empty": (("generators", "python"), "", "no random number generator"),
    "python's state short": (("generators", "python"), python_state(lambda v, i, g: [v, i[:9], g]), "no random"),
    "python's state words": (("generators", "python"), python_state(lambda v, i, g: [v, ["a"] * 625, g]), "no random"),
    "python's state version": (("generators", "python"), python_state(lambda v, i, g: [9, i, g]), "no random"),
    "python's state gauss": (("generators", "python"), python_state(lambda v, i, g: [v, i, "g"]), "no random"),
    "estimator a dict": (("estimator",), {}, "estimator"),
    "estimator's noise unasked": (("estimator",), [torch.zeros(3)], "estimator"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "value", "words"), WRONG.values(), ids=WRONG)
def test_what_is_missing_or_wrong_is_named_and_nothing_is_loaded(tmp_path, stored, path, value, words):
    torch.save(put(stored, path, value), tmp_path / "c.pt")
    run = begin(trainer(), TASK, model(), 0)
    before = state_of(run)
    with pytest.raises(ConfigError, match=words) as caught:
        checkpoint.load(tmp_path / "c.pt", run, BPTT(), TOLD)
    line = str(caught.value)
    assert "c.pt" in line and "\n" not in line and len(line) < 600, line
    assert same(state_of(run), before)


def test_the_whole_checkpoint_is_loaded_and_another_state_is_none_of_its_noise(tmp_path, stored):
    torch.save(stored, tmp_path / "c.pt")
    run = begin(trainer(), TASK, model(), 0)
    before = state_of(run)
    torch.save(put(stored, ("estimator",), [torch.zeros(5056, dtype=torch.uint8)]), tmp_path / "noise.pt")
    with pytest.raises(ConfigError, match="no random number generator"):
        checkpoint.load(tmp_path / "noise.pt", run, RandomTruncation(mean_steps=2), TOLD)
    assert same(state_of(run), before)
    checkpoint.load(tmp_path / "c.pt", run, BPTT(), TOLD)
    assert run.step == 2 and not same(state_of(run), before)


def test_rates_and_decays_are_the_configuration_s_whatever_the_file_says(tmp_path, stored):
    groups = copy.deepcopy(stored["optimizer"]["param_groups"])
    groups[0] |= {"betas": (5.0, -1.0), "weight_decay": 1e9, "maximize": True}
    torch.save(put(stored, ("optimizer", "param_groups"), groups), tmp_path / "c.pt")
    run = begin(trainer(), TASK, model(), 0)
    checkpoint.load(tmp_path / "c.pt", run, BPTT(), TOLD)
    (group,) = run.optimizer.param_groups
    assert (group["betas"], group["weight_decay"], group["maximize"]) == ((0.9, 0.95), 0.1, False)
