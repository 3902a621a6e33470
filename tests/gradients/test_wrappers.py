"""Members of a cell are found within what is put around it, results by torch's trees, generators by copies."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.distributed.utils import _apply_to_tensors
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils import _pytree as pytree

from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    ForwardGradient,
    ImplicitGradient,
    RandomTruncation,
    RandomUpdates,
    ReversibleBPTT,
    Rollout,
    Stats,
    TruncatedBPTT,
)
from loopgrad.gradients.contract import period_of
from loopgrad.models import Damped


class Cell(nn.Module):
    period = 3

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, state, inputs, step):
        return torch.tanh(self.linear(state) + inputs)


class Handing(nn.Module):
    """What an engine or a tracker puts around a module."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


class OwnPeriod(Handing):
    period = 5


@pytest.fixture
def alone():
    """A group of one process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS = {
    "compile": lambda cell: torch.compile(cell, backend="eager"),
    "handing": Handing,
    "handing twice": lambda cell: Handing(Handing(cell)),
    "average": AveragedModel,
    "parallel": DistributedDataParallel,
    "parallel, compiled": lambda cell: DistributedDataParallel(torch.compile(cell, backend="eager")),
    "data parallel": nn.DataParallel,
}
every_wrapper = pytest.mark.parametrize(
    "wrap",
    [pytest.param(it, id=name, marks=[pytest.mark.slow] * ("compile" in name)) for name, it in WRAPPERS.items()],
)


def gradient(estimator, cell, own):
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 4)
    rollout = estimator(cell, torch.zeros_like(x), x, 7)
    return rollout, torch.autograd.grad(rollout.state.square().sum(), list(own.parameters()))


@every_wrapper
def test_a_wrapped_cell_keeps_its_period(wrap, alone):
    cell = wrap(Cell())
    assert period_of(cell) == 3
    own = next(module for module in cell.modules() if isinstance(module, Cell))
    rollout, found = gradient(TruncatedBPTT(num_cycles=1), cell, own)
    plain, expected = gradient(TruncatedBPTT(num_cycles=1), own, own)
    assert rollout.stats.vjps == plain.stats.vjps == 3
    assert all(map(torch.equal, found, expected))


def test_a_period_of_ones_own_goes_before_that_inside():
    assert period_of(OwnPeriod(Cell())) == 5
    assert period_of(Handing(nn.Linear(2, 2))) == 1


@pytest.mark.filterwarnings("ignore")  # of the compiler, of its own code
@every_wrapper
@pytest.mark.parametrize("estimator", [BPTT(), ReversibleBPTT()], ids=["bptt", "reversible"])
def test_a_wrapped_coupling_is_coupled_and_undone(wrap, estimator, alone):
    cell = wrap(Damped(Cell(), "1/4"))
    own = next(module for module in cell.modules() if isinstance(module, Damped))
    rollout, found = gradient(estimator, cell, own)
    plain, expected = gradient(BPTT(), own, own)
    assert torch.equal(rollout.state, plain.state)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_a_compiler_around_data_parallel_training_is_refused_by_name(alone):
    cell = torch.compile(DistributedDataParallel(Cell()), backend="eager")
    with pytest.raises(TypeError, match=r"DistributedDataParallel\(torch.compile\(cell\)\)"):
        gradient(CheckpointedBPTT(), cell, cell)


@dataclasses.dataclass
class State:
    z: torch.Tensor
    count: int


def test_torch_finds_the_tensors_of_a_rollout_and_backward_its_stats():
    stats = Stats(3, 0)
    rollout = Rollout({"a": State(torch.ones(2), 4)}, stats, (torch.zeros(1), None))
    leaves, spec = pytree.tree_flatten(rollout)
    assert [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)] == [rollout.state["a"].z, rollout.outputs[0]]
    again = pytree.tree_unflatten([leaf + 1 if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec)
    assert again.stats is stats
    assert again.state["a"].z.tolist() == [2, 2] and again.state["a"].count == 4
    assert again.outputs[0].tolist() == [1] and again.outputs[1] is None
    assert spec == pytree.tree_flatten(rollout)[1]


DRAWN = {
    "random truncation": RandomTruncation(mean_steps=8, seed=5),
    "entropy": RandomTruncation(mean_steps=8),
    "forward": ForwardGradient(seed=3),
    "scope": RandomUpdates(0.5, seed=1),
}


@pytest.mark.parametrize("estimator", DRAWN.values(), ids=DRAWN)
def test_a_copy_draws_on_and_another_seed_begins_anew(estimator):
    assert dataclasses.replace(estimator).generator is estimator.generator
    assert _apply_to_tensors(torch.clone, estimator).generator is estimator.generator  # what hooks of torch do
    other = dataclasses.replace(estimator, seed=7)
    assert other.generator is not estimator.generator
    assert torch.equal(other.generator.get_state(), torch.Generator().manual_seed(7).get_state())


def test_copies_share_the_solution_that_a_solve_starts_from():
    estimator = ImplicitGradient(warm_start=True, on_unconverged="ignore")
    copy = _apply_to_tensors(torch.clone, estimator)
    cell = Cell()
    gradient(copy, cell, cell)
    assert estimator._last.solution is copy._last.solution is not None
