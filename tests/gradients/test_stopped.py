"""`stats` says of samples that have stopped changing, whose gradient estimators of the last updates cannot see."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from loopgrad.gradients import BPTT, ImplicitGradient, PhantomGradient, Stationary, TorchDEQ, TruncatedBPTT
from loopgrad.gradients.stopped import Before

try:
    import torchdeq  # noqa: F401  # pyright: ignore[reportMissingImports]
except ImportError:
    torchdeq = None

LOOSE = {"forward_rtol": 10.0, "max_gradient_error": 0.5, "fallback": TruncatedBPTT(num_cycles=1)}
ESTIMATORS = {
    "truncated": lambda: TruncatedBPTT(num_steps=2),
    "truncated, whole cycles": lambda: TruncatedBPTT(num_cycles=1),
    "phantom": lambda: PhantomGradient(2, damping=0.5),
    "implicit": lambda: ImplicitGradient(**LOOSE),
    "implicit, no fallback": lambda: ImplicitGradient(on_unconverged="ignore", solver="gmres"),
    "implicit, neumann": lambda: ImplicitGradient(solver="neumann", **LOOSE),
    "implicit, bicgstab": lambda: ImplicitGradient(solver="bicgstab", **LOOSE),
    "implicit, anderson": lambda: ImplicitGradient(solver="anderson", **LOOSE),
    "torchdeq": lambda: TorchDEQ(f_tol=0.0),
    "torchdeq, phantom": lambda: TorchDEQ("phantom", f_tol=0.0, num_steps=2),
}
for name in [] if torchdeq else ["torchdeq", "torchdeq, phantom"]:
    del ESTIMATORS[name]

WAYS = {  # of letting a sample stand still: `going` is (batch, 1)
    "where": lambda going, z, image: torch.where(going, image, z),
    "mask": lambda going, z, image: z + going * (image - z),
    "rows": lambda going, z, image: z.index_copy(0, (rows := going[:, 0].nonzero()[:, 0]), image[rows]),
}


class Halting(nn.Module):
    """Each sample changes for as many updates as inputs["steps"] says; `period` updates make a cycle."""

    def __init__(self, way, period=1):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.way, self.period = nn.Linear(3, 3).double(), way, period

    def forward(self, state, inputs, step):
        going = (step < inputs["steps"]).unsqueeze(1)
        return self.way(going, state, torch.tanh(self.linear(state) + inputs["x"]))


def halting(steps):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(steps), 3, generator=generator).double()
    return torch.zeros(len(steps), 3).double(), {"steps": torch.tensor(steps), "x": x}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_samples_that_have_stopped_are_counted_and_have_no_gradient(name, way):
    cell = Halting(WAYS[way], period=2)
    state, inputs = halting([2, 99, 4, 99, 99])
    for i, stands in enumerate([True, False, True, False, False]):
        rollout = ESTIMATORS[name]()(cell, state, inputs, 8)
        gradient = torch.autograd.grad(rollout.state[i].square().sum(), cell.linear.weight)[0]
        exact = torch.autograd.grad(BPTT()(cell, state, inputs, 8).state[i].square().sum(), cell.linear.weight)[0]
        assert bool((gradient == 0).all()) == stands and bool((exact != 0).any())
    rollout = ESTIMATORS[name]()(cell, state, inputs, 8)
    rollout.state.square().sum().backward()
    assert rollout.stats.stopped.tolist() == [True, False, True, False, False]
    assert rollout.stats.numbers()["stopped"] == 0.4


def test_a_sample_whose_fallback_goes_back_to_where_it_moved_is_not_counted():
    cell, (state, inputs) = Halting(WAYS["where"]), halting([2, 12, 99])
    rollout = ImplicitGradient(fallback=TruncatedBPTT(num_steps=8))(cell, state, inputs, 16)
    gradient = torch.autograd.grad(rollout.state[1].square().sum(), cell.linear.weight, retain_graph=True)[0]
    rollout.state.square().sum().backward()
    assert gradient.abs().max() > 0 and rollout.stats.stopped.tolist() == [True, False, False]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_nothing_is_said_where_none_has_stopped(name):
    rollout = ESTIMATORS[name]()(Halting(WAYS["where"]), *halting([99, 99]), 6)
    rollout.state.square().sum().backward()
    assert "stopped" not in rollout.stats.numbers()
    assert "stopped" not in repr(rollout.stats)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_fixed_point_of_the_arithmetic_is_told_apart_where_the_jacobian_is_known(name):
    """z <- W x is at its fixed point after one update, to the last bit, and its gradient is there."""
    torch.manual_seed(0)
    weight, x = torch.randn(3, 3).double().requires_grad_(), torch.randn(4, 3).double()
    rollout = ESTIMATORS[name]()(
        Stationary(lambda z, x: x @ weight + 0 * z, [weight]), torch.zeros(4, 3).double(), x, 6
    )
    (gradient,) = torch.autograd.grad(rollout.state.sum(), weight)
    assert (gradient != 0).any()
    assert rollout.stats.numbers().get("stopped", 0.0) == (0.0 if "implicit" in name else 1.0)


def test_bptt_says_nothing():
    rollout = BPTT()(Halting(WAYS["where"]), *halting([1, 99]), 6)
    assert rollout.stats.stopped is None and rollout.stats.numbers() == {}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_nothing_is_compared_where_no_gradient_is_asked_for(name):
    with torch.no_grad():
        rollout = ESTIMATORS[name]()(Halting(WAYS["where"]), *halting([1, 99]), 6)
    assert rollout.stats.stopped is None


class Reads(TorchDispatchMode):
    """Counts numbers that are read from the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


class Lists(TorchFunctionMode):
    """Counts tensors that are read as lists, which on a CPU is no operator."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.Tensor.tolist
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["truncated", "phantom"])
def test_the_device_is_waited_for_only_when_the_numbers_are_asked_for(name):
    cell, (state, inputs) = Halting(WAYS["where"]), halting([1, 99])
    with Reads() as reads, Lists() as lists:
        rollout = ESTIMATORS[name]()(cell, state, inputs, 6)
        rollout.state.sum().backward()
        assert reads.count + lists.count == 0
        rollout.stats.numbers()
        assert reads.count + lists.count == 1


def test_samples_are_counted_where_the_batch_is():
    """Two layers, three samples, of which one has stopped."""
    going = torch.tensor([True, False, True]).view(1, 3, 1)
    cell = Stationary(lambda z, x: torch.where(going, torch.cos(x * z), z), parameters=[])
    x = torch.rand(2, 3, 4).requires_grad_()
    rollout = TruncatedBPTT(1)(cell, torch.ones(2, 3, 4), x, 4, batch_dim=1)
    assert rollout.stats.stopped.tolist() == [False, True, False]


ONES = torch.ones(2, 3)
COMPARED = {
    "same": ([ONES], [ONES.clone()], [True, True]),
    "one row": ([ONES], [ONES + torch.tensor([[0.0], [1.0]])], [True, False]),
    "another leaf": ([ONES, ONES], [ONES.clone(), ONES + torch.tensor([[1.0], [0.0]])], [False, True]),
    "counters beside it": ([ONES, torch.tensor(0), None], [ONES.clone(), torch.tensor(1), None], [True, True]),
    "nan": ([ONES * torch.nan], [ONES * torch.nan], [False, False]),
    "no batch in common": ([ONES, torch.ones(3)], [ONES.clone(), torch.ones(3)], [True]),
    "no dimension": ([torch.ones(())], [torch.ones(())], [True]),
    "no rows": ([torch.ones(0, 3)], [torch.ones(0, 3)], []),
    "no numbers": ([torch.ones(2, 0)], [torch.ones(2, 0)], [True, True]),
    "growing": ([ONES], [torch.ones(2, 4)], None),
    "no floating leaf": ([torch.tensor(1)], [torch.tensor(1)], None),
    "another number of leaves": ([ONES], [ONES, ONES], None),
}


@pytest.mark.parametrize("name", COMPARED)
def test_rows_are_compared_over_all_floating_leaves(name):
    before, after, expected = COMPARED[name]
    found = Before(before).stopped(after)
    assert expected is None and found is None or found is not None and found.tolist() == expected


def test_nothing_is_said_of_a_state_that_was_written_to():
    z = torch.ones(2, 3)
    before = Before([z])
    assert before.stopped([z.add_(1)]) is None
