"""A reversible cell of one's own, written from what `Invertible` says: the additive coupling of RevNet and NICE."""

import pytest
import torch
from torch import nn

from loopgrad.analysis import record
from loopgrad.gradients import BPTT, CheckpointedBPTT, Invertible, ReversibleBPTT, Stationary, Undone
from loopgrad.gradients.invertible import is_invertible
from loopgrad.models import Damped


class AdditiveCoupling(Invertible):
    """a <- a + f(b) at even updates, b <- b + g(a) at odd ones, in plain floating point."""

    exact = False  # (a + f(b)) - f(b) is a up to rounding
    period = 2

    def __init__(self, f: nn.Module, g: nn.Module):
        super().__init__()
        self.nets = nn.ModuleList([f, g])

    def forward(self, state, inputs, step, undo=None):
        changed = step % 2
        reads = list(state)
        if undo is not None:  # the stream that the update has read is still there
            reads = [leaf.detach().requires_grad_(torch.is_grad_enabled()) for leaf in state]
        image = self.nets[changed](reads[1 - changed] + inputs)
        if undo is None:
            reads[changed] = reads[changed] + image
            return tuple(reads)
        with torch.no_grad():
            before = [leaf - image if i == changed else leaf for i, leaf in enumerate(state)]
        return Undone(tuple(before), reads, [image if i == changed else None for i in range(2)])

    def pull(self, images, gradients):
        return [None if image is None else g for image, g in zip(images, gradients, strict=True)], list(gradients)


def problem(seed=0):
    torch.manual_seed(seed)
    nets = [nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).double() for _ in range(2)]
    z = tuple(torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return AdditiveCoupling(*nets), z, torch.randn(3, 4, dtype=torch.float64, requires_grad=True)


def gradients(estimator, cell, z, x, num_steps):
    state = estimator(cell, z, x, num_steps).state
    loss = (state[0] ** 2).sum() + state[1].sin().sum()
    return state, torch.autograd.grad(loss, [*z, x, *cell.parameters()], materialize_grads=True)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 64])
@pytest.mark.parametrize("anchors", [None, 5])
def test_its_gradient_is_that_of_bptt(num_steps, anchors):
    cell, z, x = problem()
    state, got = gradients(ReversibleBPTT(anchors=anchors), cell, z, x, num_steps)
    plain, expected = gradients(BPTT(), cell, z, x, num_steps)
    assert all(map(torch.equal, state, plain))
    for mine, true in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-12)


def test_every_other_estimator_runs_it_too():
    cell, z, x = problem()
    (_, got), (_, expected) = (gradients(e, cell, z, x, 6) for e in (CheckpointedBPTT(), BPTT()))
    assert all(map(torch.equal, got, expected))
    assert record(cell, tuple(leaf.detach() for leaf in z), x.detach(), 6).num_steps == 6


def test_an_update_that_is_not_undone_is_noticed():
    class Wrong(AdditiveCoupling):
        def forward(self, state, inputs, step, undo=None):
            return super().forward(state, inputs, step if undo is None else step + 1, undo)

    cell, z, x = problem()
    wrong = Wrong(*cell.nets)
    with pytest.raises(RuntimeError, match="did not meet the first state again"):
        gradients(ReversibleBPTT(), wrong, z, x, 7)


def test_more_updates_than_can_be_undone_are_refused():
    cell, z, x = problem()
    cell.safe_length = 8
    gradients(ReversibleBPTT(anchors=8), cell, z, x, 20)
    with pytest.raises(ValueError, match=r"this AdditiveCoupling can undo 8 updates, .*anchors=8"):
        ReversibleBPTT()(cell, z, x, 20)


def test_what_is_invertible_says_so_and_nothing_else_is():
    cell, _, _ = problem()
    for yes in (cell, torch.compile(cell, backend="eager"), Damped(Stationary(lambda z, x: z))):
        assert is_invertible(yes)
    for no in (nn.Linear(2, 2), torch.compile(nn.Linear(2, 2), backend="eager"), Stationary(lambda z, x: z)):
        assert not is_invertible(no)


def test_a_cell_without_its_derivative_is_refused_when_it_is_made():
    class Unfinished(Invertible):
        def forward(self, state, inputs, step, undo=None):
            return state

    with pytest.raises(TypeError, match="pull"):
        Unfinished()  # pyright: ignore


@pytest.mark.parametrize(
    ("members", "error", "said"),
    [
        ({"exact": True}, RuntimeError, "arithmetic rounds: that one says exact = False"),
        (
            {"forward": lambda self, state, inputs, step: state},
            TypeError,
            r"must take \(state, inputs, step, undo=None\)",
        ),
        ({"forward": lambda self, state, inputs, step, undo=None: state}, TypeError, "must return Undone, got tuple"),
        ({"pull": lambda self, images, gradients: list(gradients)}, TypeError, "pull must return gradients of"),
        ({"pull": lambda self, images, gradients: ([], gradients)}, TypeError, "pull must return gradients of"),
    ],
)
def test_a_mistake_in_a_cell_of_ones_own_is_named(members, error, said):
    cell, z, x = problem()
    with pytest.raises(error, match=said):
        gradients(ReversibleBPTT(), type("Own", (AdditiveCoupling,), members)(*cell.nets), z, x, 4)
