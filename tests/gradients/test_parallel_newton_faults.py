"""What all updates at once would get wrong without a word, or refuse with an untrue one."""

import copy

import pytest
import torch
from torch import nn

from loopgrad.gradients import BPTT, BatchDims, ParallelNewton, Stationary, Until
from loopgrad.gradients.implicit_verdict import Unconverged
from loopgrad.gradients.watched_step import Step, WatchedCell

WAYS = {
    "full": ParallelNewton(),
    "damped": ParallelNewton(damping=1.0),
    "diagonal": ParallelNewton("diagonal", max_iterations=200),
}
every_way = pytest.mark.parametrize("way", WAYS)


class Of(nn.Module):
    """A cell of a map of (z, x, W, step)."""

    def __init__(self, fn, period=None, features=4):
        super().__init__()
        torch.manual_seed(0)
        self.fn, self.W = fn, nn.Parameter(0.4 * torch.randn(features, features, dtype=torch.float64))
        if period is not None:
            self.period = period

    def forward(self, z, x, step):
        return self.fn(z, x, self.W, step)


def given(num_steps=9, batch=3, features=4):
    torch.manual_seed(1)
    state = torch.randn(batch, features, dtype=torch.float64).requires_grad_()
    return state, torch.randn(num_steps, batch, features, dtype=torch.float64).requires_grad_()


def agree(estimator, cell, state, inputs, num_steps, tolerance=1e-10, sources=None, **asked):
    sources = [cell.W, asked["xs"]] if sources is None else sources
    found = []
    for it in (estimator, BPTT()):
        rollout = it(cell, state, inputs, num_steps, **asked)
        gradients = torch.autograd.grad(rollout.state.sin().sum(), sources, allow_unused=True)
        found.append([rollout.state, *gradients])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).abs().max() <= tolerance * (1 + b.abs().max())


READ_OTHERWISE = {
    "remainder": (17, lambda t: 2.0 if t % 4 == 2 else 1.0),
    "seldom": (32, lambda t: 2.0 if t % 8 == 5 else 1.0),
    "once": (9, lambda t: 2.0 if t == 9 // 4 + 1 else 1.0),
    "below": (40, lambda t: 2.0 if 5 < t < 8 else 1.0),
    "dict": (40, lambda t: {7: 2.0}.get(t, 1.0)),
    "truth": (9, lambda t: 1.0 if t else 1.0),
    "tensor": (40, lambda t: 2.0 if torch.tensor(t) == 7 else 1.0),
    "index": (40, lambda t: torch.eye(40, dtype=torch.float64)[7, t]),
    "text": (40, lambda t: 2.0 if f"{t}" == "7" else 1.0),
}


@every_way
@pytest.mark.parametrize("name", READ_OTHERWISE)
def test_a_cell_that_reads_its_step_otherwise_is_refused_at_whichever_update(name, way):
    num_steps, factor = READ_OTHERWISE[name]
    cell = Of(lambda z, x, W, t: torch.tanh(z @ W + x * factor(t)))
    state, xs = given(num_steps)
    with pytest.raises(RuntimeError, match=r"reads `step` other than by its period.*as xs, or say cell\.period"):
        WAYS[way](cell, state, None, num_steps, xs=xs)
    assert not isinstance(cell, WatchedCell) and [name for name, _ in cell.named_modules()] == [""]


@pytest.mark.parametrize("asked", [{}, {"start": 5}, {"lengths": [3, 9, 17]}, {"batch_dim": BatchDims(0, None)}])
def test_a_cell_that_reads_its_place_in_a_cycle_runs(asked):
    cell = Of(lambda z, x, W, t: torch.tanh(z @ W + x * (2.0 if t % 4 == 2 else 1.0) * (1 + t % 2)), period=4)
    state, xs = given(17)
    agree(ParallelNewton(), cell, state, None, 17, xs=xs, **asked)


def test_within_one_cycle_a_cell_reads_its_step_as_it_likes():
    cell = Of(lambda z, x, W, t: torch.tanh(z @ W + x * (2.0 if t == 2 else 1.0) * torch.tensor(t)), period=9)
    state, xs = given(9)
    agree(ParallelNewton(), cell, state, None, 9, xs=xs)


def test_a_watched_step_is_the_int_that_it_is():
    noted = []
    step = Step(7, 6, lambda: noted.append(1))
    assert step % 3 == 1 and step % 6 == 1 and type(step % 6) is int and isinstance(step, int) and not noted
    uses = [lambda t: t % 4, lambda t: t == 7, hash, bool, int, str, float, lambda t: t + 1, lambda t: 1 - t]
    uses += [lambda t: t // 2, lambda t: divmod(t, 3), lambda t: t.real, lambda t: t & 1, lambda t: f"{t:d}"]
    for n, use in enumerate([*uses, copy.deepcopy, lambda t: t < 3, lambda t: 9 % t], 1):
        assert use(step) == use(7) and len(noted) >= n


@every_way
def test_samples_that_see_each_other_are_refused_though_the_first_guess_hides_it(way):
    cell, (_, xs) = Of(lambda z, x, W, t: torch.tanh(z @ W + x + 0.5 * z.mean(0))), given(9)
    xs = torch.cat([torch.zeros_like(xs[:2]), xs[2:]]).detach()
    with pytest.raises(RuntimeError, match="samples see each other"):
        WAYS[way](cell, torch.zeros(3, 4, dtype=torch.float64), None, 9, xs=xs)


@every_way
def test_samples_that_see_each_other_in_the_derivative_alone_are_refused(way):
    cell = Of(lambda z, x, W, t: torch.tanh(z @ W + x) + (z.mean(0) - z.mean(0).detach()))
    state, xs = given(9)
    # of the wrong Jacobians damped steps may get nowhere, which is told as well
    with pytest.raises(RuntimeError, match=r"in their derivative.*samples see each other|steps have left"):
        WAYS[way](cell, state, None, 9, xs=xs)


@every_way
@pytest.mark.parametrize("lengths", [[5, 2, 7], [1, 1, 1], [0, 2, 1], [0, 0, 0]])
def test_lengths_that_all_end_before_the_last_update(lengths, way):
    cell, (state, xs) = Of(lambda z, x, W, t: torch.tanh(z @ W + x)), given(8)
    agree(WAYS[way], cell, state, None, 8, xs=xs, lengths=lengths)


@pytest.mark.parametrize("period", [1, 3])
def test_an_event_that_ends_all_samples_early(period):
    cell, (state, xs) = Of(lambda z, x, W, t: torch.tanh(z @ W + x * (1 + t % period)), period), given(12)
    event = lambda z, *_: z[:, 1] > 0.8  # noqa: E731
    taken = BPTT()(cell, state, None, 12, xs=xs, until=Until(event)).stats.steps
    assert 1 < max(taken) < 12
    agree(ParallelNewton(), cell, state, None, 12, xs=xs, until=Until(event))
    rollout = ParallelNewton()(cell, state, None, 12, xs=xs, until=Until(event))
    assert rollout.stats.steps == taken


@every_way
@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
def test_a_loose_tolerance_goes_back(tolerance, way):
    cell, (state, xs) = Of(lambda z, x, W, t: torch.tanh(z @ W + x)), given(9)
    loose = ParallelNewton(WAYS[way].jacobian, WAYS[way].damping, tolerance, 200)
    if way != "diagonal":  # which has taken as many steps as there are updates
        assert loose(cell, state, None, 9, xs=xs).stats.residuals[-1] > 1e-14
    agree(loose, cell, state, None, 9, 30 * tolerance, xs=xs)


def test_a_cell_that_changes_between_the_passes_is_told_at_a_loose_tolerance_too():
    scale = [1.0]
    cell, (state, xs) = Of(lambda z, x, W, t: torch.tanh(z @ W + x) * scale[0]), given(9)
    rollout = ParallelNewton(tolerance=1e-3)(cell, state, None, 9, xs=xs)
    scale[0] = 1.0001
    with pytest.raises(RuntimeError, match="did not meet the state"):
        rollout.state.sum().backward()


@every_way
def test_a_sample_that_is_lost_does_not_meet_the_tolerance(way):
    cell, (state, xs) = Of(lambda z, x, W, t: torch.tanh(z @ W + x)), given(9)
    state = state.detach().clone()
    state[1] = torch.nan
    how = {"jacobian": WAYS[way].jacobian, "damping": WAYS[way].damping, "max_iterations": 12}
    with pytest.raises(Unconverged, match="relative residual of inf"):
        ParallelNewton(**how)(cell, state, None, 9, xs=xs)
    rollout = ParallelNewton(**how, on_unconverged="fallback")(cell, state, None, 9, xs=xs)
    last = BPTT()(cell, state, None, 9, xs=xs).state
    assert rollout.stats.fallback and torch.equal(rollout.state[[0, 2]], last[[0, 2]])
    assert rollout.state[1].isnan().all()


@every_way
@pytest.mark.parametrize("period", [1, 2])
def test_an_update_that_does_not_depend_on_its_state(period, way):
    state, xs = given(9)
    for fn in (
        lambda z, x, W, t: torch.tanh(x @ W),
        lambda z, x, W, t: torch.tanh(z.detach() @ W + x),
        lambda z, x, W, t: torch.tanh((z.detach() if t % period else z) @ W + x),
    ):
        agree(WAYS[way], Of(fn, period), state, None, 9, xs=xs)
    agree(WAYS[way], Of(lambda z, x, W, t: torch.tanh(x)), state, xs[0], 9, sources=[xs])


@every_way
@pytest.mark.parametrize("asked", [{}, {"save": "sum", "readout": lambda z, *_: z.sum(1)}])
def test_a_batch_without_samples(asked, way):
    cell, (state, xs) = Of(lambda z, x, W, t: torch.tanh(z @ W + x)), given(9, batch=0)
    rollout = WAYS[way](cell, state, None, 9, xs=xs, **asked)
    assert rollout.state.shape == (0, 4)
    assert torch.autograd.grad(rollout.state.sum(), cell.W)[0].eq(0).all()


def test_inputs_whose_batch_is_not_told_are_told_how():
    cell = Stationary(lambda z, x: (torch.tanh(z[0] + x), torch.tanh(z[1] + x)))
    state, x = (torch.zeros(2, 3, 4), torch.zeros(3, 4)), torch.randn(3, 4)
    with pytest.raises(RuntimeError, match=r"batch_dim=BatchDims\(\(1, 0\), 0\)"):
        ParallelNewton()(cell, state, x, 6, batch_dim=(1, 0))
    found = [it(cell, state, x, 6, batch_dim=BatchDims((1, 0), 0)).state[0] for it in (ParallelNewton(), BPTT())]
    torch.testing.assert_close(*found)
    plain = Stationary(lambda z, x: torch.tanh(z + x))
    with pytest.raises(RuntimeError, match=r"batch_dim=BatchDims\(1, 0\)"):
        ParallelNewton()(plain, state[0], x, 6, batch_dim=1)
