"""Stopping on data leaves everything as the same call with these lengths does, whatever the cell draws or rewrites."""

import copy

import pytest
import torch
from cases import ESTIMATORS
from cells import CELLS
from problems import leaves_of, loss_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from until_cases import ESTIMATORS as EXACT
from until_cases import build

from loopgrad.gradients import BPTT, CheckpointedBPTT, RandomTruncation, Stationary, TruncatedBPTT, Until

FAST = {("bptt", "buffers"), ("bptt", "dropout"), ("checkpointed_3", "dropout"), ("checkpointed_sqrt", "normalised")}
FAST |= {("truncated_one_step", "dataclass_state"), ("reversible_damped", "dropout"), ("bptt", "normalised")}
RUNS = [
    (case, cell)
    for case in [*ESTIMATORS]
    for cell in CELLS
    if cell not in case.refused and not case.name.startswith("implicit")
]


def restless(state, *_):
    return (leaves_of(state)[0].flatten(1).sum(1) * 7).frac().abs() < 0.2


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    ("case", "cell"),
    [run if (run[0].name, run[1]) in FAST else pytest.param(*run, marks=pytest.mark.slow) for run in RUNS],
    ids=lambda it: it if isinstance(it, str) else it.name,
)
def test_values_gradients_buffers_and_generators_are_those_of_such_lengths(case, cell, every):
    found, taken = [], None
    for _ in range(2):
        problem, estimator = case.build(cell), copy.deepcopy(case.estimator)
        torch.manual_seed(3)
        given = {"until": Until(restless, every)} if taken is None else {"lengths": taken}
        rollout = estimator(problem.cell, problem.state, problem.inputs, 9, **given)
        taken = rollout.stats.steps
        drawn, sources = torch.rand(()), list(problem.sources().values())
        gradients = torch.autograd.grad(loss_of(rollout.state), sources, allow_unused=True)
        found.append([*leaves_of(rollout.state), *gradients, *problem.cell.buffers(), drawn])
    for mine, expected in zip(*found, strict=True):
        assert (mine is None) == (expected is None)
        assert mine is None or torch.equal(mine, expected)


@pytest.mark.parametrize("estimator", [BPTT(), CheckpointedBPTT(), TruncatedBPTT(20)], ids=lambda e: type(e).__name__)
def test_a_readout_that_draws_leaves_the_cell_its_masks(estimator):
    torch.manual_seed(0)
    linear, x = nn.Linear(4, 4).double(), torch.randn(3, 4).double()
    cell = Stationary(lambda z, x: torch.tanh(nn.functional.dropout(linear(z), 0.3) + x), parameters=linear)
    readout = lambda z, *_: nn.functional.dropout(z, 0.5).sum(1)  # noqa: E731
    found = []
    for given in ({"until": Until(restless, 4)}, {}):
        torch.manual_seed(5)
        given = given or {"lengths": found[0][0]}
        rollout = estimator(cell, torch.zeros_like(x), x, 30, readout=readout, save="sum", **given)
        drawn = torch.rand(())
        gradients = torch.autograd.grad(rollout.outputs.sum() + rollout.state.sum(), linear.bias)
        found.append((rollout.stats.steps, rollout.state, rollout.outputs, drawn, *gradients))
    assert all(map(torch.equal, found[0][1:], found[1][1:])) and len(set(found[0][0])) > 1


class Looks(TorchDispatchMode):
    """Counts what the host reads of tensors of numbers."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count = 0
        for name in ("tolist", "cpu", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, self.counted(getattr(torch.Tensor, name)))

    def counted(self, method):
        def call(tensor, *arguments):
            self.count += 1
            return method(tensor, *arguments)

        return call

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("every", [1, 4, 7, 100])
@pytest.mark.parametrize(
    ("name", "coupling"),
    [("bptt", "plain"), ("sqrt", "plain"), ("truncated", "plain"), ("reversible", "damped")],
)
def test_the_host_looks_once_in_so_many_updates(name, coupling, every, monkeypatch):
    ended = build("gru", coupling)
    estimator = TruncatedBPTT(3) if name == "truncated" else EXACT[name]
    with Looks(monkeypatch) as looks:
        rollout = ended.run(estimator, until=Until(ended.event, every))
    once_more = name == "truncated"  # at which updates are the last of each sample
    assert looks.count == -(-max(rollout.stats.steps) // every) + once_more


class Lazy(nn.Module):
    """Derives a weight at its first update ever, and keeps it."""

    def __init__(self):
        super().__init__()
        self.linear, self.derived = nn.Linear(4, 4).double(), None

    def forward(self, state, inputs, step):
        self.derived = self.linear.weight * 0.5 if self.derived is None else self.derived
        return torch.tanh(state @ self.derived + inputs)


def hidden():
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    return Stationary(lambda z, x: torch.tanh(weight * z + x)), weight


def lazy():
    torch.manual_seed(0)
    cell = Lazy()
    return cell, cell.linear.weight


@pytest.mark.parametrize("made", [hidden, lazy])
@pytest.mark.parametrize(
    "estimator", [CheckpointedBPTT(), TruncatedBPTT(2), RandomTruncation(8, reweight=False, seed=0)]
)
def test_what_a_cell_hides_or_derives_once_keeps_its_gradient(made, estimator):
    x, found, taken = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).double(), [], None
    for _ in range(2):
        cell, weight = made()
        given = {"until": Until(restless, 4)} if taken is None else {"lengths": taken}
        rollout = copy.deepcopy(estimator)(cell, torch.zeros_like(x), x, 30, **given)
        taken = rollout.stats.steps
        found.append(torch.autograd.grad(rollout.state.sum(), weight)[0])
    assert torch.equal(*found) and found[0].any()


def test_a_recursion_within_a_recursion_ends_too():
    ended, found = build(), []

    class Outer(nn.Module):
        def __init__(self, estimator):
            super().__init__()
            self.inner, self.estimator = ended.counter.cell, estimator

        def forward(self, state, inputs, step):
            return torch.tanh(self.estimator(self.inner, state, inputs, 9, until=Until(restless, 2)).state + inputs)

    for outer in (BPTT(), CheckpointedBPTT()):
        for inner in (BPTT(), CheckpointedBPTT()):
            rollout = outer(Outer(inner), ended.state, ended.inputs, 6, until=Until(restless, 2))
            found.append((rollout.stats.steps, *torch.autograd.grad(rollout.state.sum(), [ended.inputs, ended.state])))
    for steps, *gradients in found[1:]:
        assert steps == found[0][0]
        for mine, expected in zip(gradients, found[0][1:], strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)
