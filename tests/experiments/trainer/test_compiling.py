"""Training with a compiled net, cell or model: the same losses, the same names, and a clear refusal where it cannot."""

import copy

import pytest
import torch
from sequence_models import MODELS
from small_runs import TASK, model, trainer

from loopgrad.experiments.conf.applies import check_compiled
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.training import checkpoint
from loopgrad.experiments.training.loop import begin, train
from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    ForwardGradient,
    ForwardMode,
    ImplicitGradient,
    PhantomGradient,
    RandomTruncation,
    ReversibleBPTT,
    TruncatedBPTT,
)

# what the compiler itself warns of
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
EAGER = trainer(train_steps=3)
ESTIMATORS = {
    "bptt": BPTT(),
    "checkpointed": CheckpointedBPTT(),
    "truncated": TruncatedBPTT(num_cycles=1),
    "phantom": PhantomGradient(num_steps=2),
    "implicit": ImplicitGradient(),
    "random_truncation": RandomTruncation(mean_steps=2, seed=1),
    "reversible": ReversibleBPTT(),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "name"),
    [*(("net", name) for name in ESTIMATORS), ("cell", "bptt"), ("model", "bptt")],
)
def test_losses_are_those_of_the_eager_model_and_checkpoints_are_interchanged(tmp_path, what, name):
    sizes = {"coupling": "damped"} if name == "reversible" else {}
    if what == "model":
        sizes = {"H_cycles": 1, "L_cycles": 1}  # all updates are unrolled, and minutes of the compiler
    compiled = trainer(train_steps=3, compile=what)
    eager, run = (begin(it, TASK, model(**sizes), 0) for it in (EAGER, compiled))
    noise = [copy.deepcopy(ESTIMATORS[name]) for _ in range(2)]
    wanted = [entry["loss"] for entry in train(eager, EAGER, TASK, noise[0], 0)]
    steps = train(run, compiled, TASK, noise[1], 0)
    found = [next(steps)["loss"] for _ in range(2)]
    assert run.model.state_dict().keys() == eager.model.state_dict().keys()
    checkpoint.save(tmp_path / "c.pt", run, noise[1], {})
    found.append(next(steps)["loss"])
    assert found == pytest.approx(wanted, rel=1e-4)  # fused kernels round otherwise
    back = begin(EAGER, TASK, model(**sizes), 0)
    checkpoint.load(tmp_path / "c.pt", back, copy.deepcopy(ESTIMATORS[name]), {})
    assert back.step == 2


@pytest.mark.parametrize(
    "estimator",
    [ForwardMode(), ForwardGradient(2), ForwardGradient(2, "weights", window=0, mode="central")],
    ids=["exact", "state", "central"],
)
@pytest.mark.parametrize("what", ["net", "cell", "model"])
def test_forward_gradients_are_refused_by_name_and_allowed_without_the_compiler(what, estimator):
    with pytest.raises(ConfigError, match=r"estimator\.mine: Forward\w+ carries tangents.*compile=none"):
        check_compiled(trainer(compile=what), {"fine": BPTT(), "mine": estimator}, model())
    check_compiled(trainer(), {"mine": estimator}, model())
    check_compiled(trainer(compile=what), ESTIMATORS, model())


def test_a_cell_without_a_net_is_refused_with_what_there_is():
    with pytest.raises(ConfigError, match="trainer.compile=net: the cell of GRU calls no net of blocks: use cell"):
        check_compiled(trainer(compile="net"), {}, MODELS["gru"]())


@pytest.mark.slow
def test_nothing_is_compiled_before_it_is_called_and_no_name_changes():
    plain, net = model(), model()
    run = begin(trainer(compile="net"), TASK, net, 0)
    assert [name for name, m in run.model.named_modules() if m._compiled_call_impl is not None] == ["cell.L_net"]
    assert run.model.state_dict().keys() == plain.state_dict().keys()
    assert all(m._compiled_call_impl is None for m in run.average.modules())
