"""Events at their edges, and those that are refused: by name, and with everything as it was."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from loopgrad.gradients import (
    BPTT,
    BatchDims,
    CheckpointedBPTT,
    CycleEvent,
    Halted,
    ImplicitGradient,
    PhantomGradient,
    ResidualBelow,
    Stationary,
    TorchDEQ,
    TruncatedBPTT,
    Until,
)

TWO = pytest.mark.parametrize("estimator", [BPTT(), CheckpointedBPTT()], ids=["bptt", "checkpointed"])


def problem(rate=0.7):
    torch.manual_seed(0)
    linear, x = nn.Linear(4, 4).double(), torch.randn(3, 4).double().requires_grad_()
    with torch.no_grad():
        linear.weight.copy_(rate * torch.linalg.qr(linear.weight)[0])
    return Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear), torch.zeros(3, 4).double(), x, linear


def states(cell, state, inputs, count):
    found = [state]
    for step in range(count):
        found.append(cell(found[-1], inputs, step))
    return [z.detach() if isinstance(z, torch.Tensor) else {k: v.detach() for k, v in z.items()} for z in found]


@TWO
def test_a_sample_settles_where_its_own_residual_says_so(estimator):
    cell, z, x, _ = problem()
    zs = states(cell, z, x, 60)
    below = [(b - a).norm(dim=1) <= 1e-4 * b.norm(dim=1) for a, b in zip(zs, zs[1:], strict=False)]
    taken = tuple(next(t + 1 for t, done in enumerate(below) if done[i]) for i in range(3))
    rollout = estimator(cell, z, x, 60, until=Until(ResidualBelow(1e-4), every=4))
    assert rollout.stats.steps == taken and len(set(taken)) > 1
    for i, count in enumerate(taken):
        assert torch.equal(rollout.state[i], zs[count][i]), "to the last bit"


class Streams(nn.Module):
    """Two streams of which an update moves one; compared update by update, one would always be still."""

    period = 2

    def forward(self, state, inputs, step):
        if step % 2:
            return {"a": state["a"], "b": 0.5 * state["b"] + state["a"], "n": state["n"] + 1}
        return {"a": inputs * state["a"] + 1, "b": state["b"], "n": state["n"] + 1}


@pytest.mark.parametrize("start", [0, 3])
def test_states_are_compared_a_cycle_apart_at_the_ends_of_cycles(start):
    rates, n = torch.tensor([[0.5], [0.8], [0.2]]).double(), torch.zeros(3, dtype=torch.long)
    z = {"a": torch.zeros(3, 1).double(), "b": torch.zeros(3, 1).double(), "n": n}
    zs, cell = [z], Streams()
    for step in range(80):
        zs.append(cell(zs[-1], rates, start + step))
    first = start % 2  # the first cycle that is whole begins here
    taken = [80] * 3
    for t in range(first + 2, 81, 2):
        before, after = (torch.cat([zs[u]["a"], zs[u]["b"]], 1) for u in (t - 2, t))
        small = (after - before).norm(dim=1) <= 1e-3 * after.norm(dim=1)
        taken = [t if small[i] and taken[i] == 80 else taken[i] for i in range(3)]
    for estimator in (BPTT(), CheckpointedBPTT()):
        rollout = estimator(cell, z, rates, 80, start=start, until=Until(ResidualBelow(1e-3), every=5))
        assert rollout.stats.steps == tuple(taken) == tuple(rollout.state["n"].tolist())
    a = BPTT()(cell, z, rates, 80, start=start, until=Until(ResidualBelow(1e-3, of=lambda z: z["a"]))).stats.steps
    assert all(mine <= both for mine, both in zip(a, taken, strict=True)) and a != tuple(taken)


@TWO
def test_the_batch_may_be_in_another_dimension(estimator):
    torch.manual_seed(0)
    gru, x = nn.GRU(4, 4, num_layers=3), torch.randn(3, 4)  # as many layers as samples
    cell, h = Stationary(lambda h, x: gru(x[None], h)[1], parameters=gru), torch.zeros(3, 3, 4)
    hs = states(cell, h, x, 40)
    below = [(b - a).norm(dim=(0, 2)) <= 1e-3 * b.norm(dim=(0, 2)) for a, b in zip(hs, hs[1:], strict=False)]
    taken = tuple(next((t + 1 for t, done in enumerate(below) if done[i]), 40) for i in range(3))
    rollout = estimator(cell, h, x, 40, batch_dim=BatchDims(1, 0), until=Until(ResidualBelow(1e-3), every=4))
    assert rollout.stats.steps == taken and len(set(taken)) > 1
    assert all(torch.equal(rollout.state[:, i], hs[t][:, i]) for i, t in enumerate(taken))


def test_a_state_that_is_not_finite_never_settles_and_one_at_rest_does_at_once():
    z = torch.tensor([[1.0], [float("nan")], [float("inf")], [0.0], [1e200]]).double()
    for tol in (0, 1e-3):
        cell = Stationary(lambda z, x: torch.where(z == 1e200, z * z, z))
        assert BPTT()(cell, z, None, 9, until=Until(ResidualBelow(tol), 4)).stats.steps == (1, 9, 9, 1, 9)


@TWO
@pytest.mark.parametrize("num_steps", [0, 1, 7])
def test_an_event_true_at_once_and_one_never_true(estimator, num_steps):
    cell, z, x, _ = problem()
    for always in (False, True):
        rollout = estimator(cell, z, x, num_steps, until=Until(lambda z, *_, a=always: torch.full((3,), a), 2))
        count = min(num_steps, 1) if always else num_steps
        assert rollout.stats.steps == (count,) * 3
        assert torch.equal(rollout.state, states(cell, z, x, count)[-1])
        assert rollout.stats.numbers() == {"steps": count}
    assert estimator(cell, z[:0], x[:0], 7, until=Until(ResidualBelow(1e-3))).stats.steps == ()


@TWO
@pytest.mark.parametrize("within", ["autocast", "cached"])
def test_a_head_that_both_halts_and_answers_keeps_its_gradient(estimator, within):
    """Casts and derived weights of an event have no graph: they must not be met again."""
    torch.manual_seed(0)
    linear, head = nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 1))
    cell, x = Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear), torch.randn(3, 4)
    answer, found, steps = lambda z, *_: head(z)[:, 0].float(), [], ()
    halted = Until(Halted(lambda z, i, x, t: answer(z) + torch.tensor([0.1, 0.2, 0.4]) * t - 1), every=4)
    for given in ({"until": halted}, {}):
        with torch.autocast("cpu", torch.bfloat16) if within == "autocast" else parametrize.cached():
            given = given or {"lengths": steps}
            rollout = estimator(cell, torch.zeros(3, 4), x, 30, readout=answer, save="sum", **given)
            steps = steps or rollout.stats.steps
            assert torch.is_autocast_cache_enabled()
            found.append(torch.autograd.grad(rollout.outputs.sum(), [*head.parameters(), *linear.parameters()]))
    assert len(set(steps)) > 1 and all(map(torch.equal, *found))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@TWO
def test_compiled_cells_end_as_they_are(estimator):
    cell, z, x, _ = problem()
    until = Until(ResidualBelow(1e-4), every=4)
    expected = estimator(cell, z, x, 60, until=until)
    found = estimator(torch.compile(cell, backend="eager"), z, x, 60, until=until)
    assert found.stats.steps == expected.stats.steps and torch.equal(found.state, expected.state)


@pytest.mark.slow
def test_within_transforms_it_is_right_or_refused():
    _, z, x, _ = problem()

    def loss(w, estimator=BPTT()):  # noqa: B008
        cell = Stationary(lambda z, x: torch.tanh(w * z + x.detach()), parameters=[w])
        return estimator(cell, z, x, 30, until=Until(ResidualBelow(1e-3), 4)).state.sum()

    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(torch.func.grad(loss)(w.detach()), torch.autograd.grad(loss(w), w)[0])
    with pytest.raises(RuntimeError, match=r"until=... cannot run within torch.func.vmap"):
        torch.func.vmap(loss)(torch.tensor([0.5, 0.3]).double())
    with pytest.raises(RuntimeError, match="cannot run within torch.func.grad"):
        torch.func.grad(lambda w: loss(w, CheckpointedBPTT()))(w.detach())


class Worn(nn.Module):
    """A cell that draws and rewrites buffers."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.2)

    def forward(self, state, inputs, step):
        return torch.tanh(self.drop(self.norm(self.linear(state))))


WRONG = {
    "a column": (lambda z: z[:, :1] > 9, ValueError, r"\(3,\) bool, one per sample.*got shape \(3, 1\)"),
    "one for all": (lambda z: (z > 9).any(), ValueError, r"got shape \(\)"),
    "logits": (lambda z: z[:, 0], TypeError, r"got torch.float32 of shape \(3,\): compare it"),
    "a bool": (lambda z: False, TypeError, "got bool"),
    "nothing": (lambda z: None, TypeError, "got NoneType"),
    "another device": (lambda z: (z[:, 0] > 9).to("meta"), ValueError, "cpu, got one on meta"),
    "draws": (lambda z: torch.rand(3) > 2, RuntimeError, "draws from torch's global generators"),
    "fails": (lambda z: 1 / 0, ZeroDivisionError, "division"),
}


@TWO
@pytest.mark.parametrize("name", WRONG)
def test_an_event_that_does_not_fit_is_refused_and_leaves_no_trace(estimator, name):
    torch.manual_seed(0)
    (wrong, error, said), cell, asked = WRONG[name], Worn(), []

    def event(z, inputs, x, step):
        asked.append(step)
        return z[:, 0] > 9 if step < 2 else wrong(z)

    kept, drawn = [buffer.clone() for buffer in cell.buffers()], torch.get_rng_state()
    with pytest.raises(error, match=said):
        estimator(cell, torch.zeros(3, 4), None, 9, until=Until(event, 4))
    assert asked == [0, 1, 2], "once"
    assert all(map(torch.equal, kept, cell.buffers())) and torch.equal(drawn, torch.get_rng_state())
    assert torch.is_grad_enabled() and torch.is_autocast_cache_enabled() and cell.training


class Same(CycleEvent):
    def __call__(self, before, after):
        return (before == after).all(1)


@pytest.mark.parametrize(
    ("made", "error", "said"),
    [
        (lambda: Until(3), TypeError, r"Until\(event=3\) must be called as event\(state, inputs, x_t, step\)"),
        (lambda: Until(ResidualBelow), TypeError, "or be a CycleEvent"),  # pyright: ignore[reportArgumentType]
        (lambda: Until(Same(), every=0), ValueError, r"Until\(every=0\)"),
        (lambda: Until(Same(), every=True), ValueError, r"Until\(every=True\)"),
        (lambda: ResidualBelow("small"), TypeError, r"ResidualBelow\(tol='small'\) must be a number"),
        (lambda: ResidualBelow(-1e-3), ValueError, r"ResidualBelow\(tol=-0.001\)"),
        (lambda: ResidualBelow(float("nan")), ValueError, r"ResidualBelow\(tol=nan\)"),
        (lambda: ResidualBelow(1e-3, of="z_H"), TypeError, r"ResidualBelow\(of='z_H'\)"),
        (lambda: Halted(nn.Linear), TypeError, "Halted"),
    ],
)
def test_nonsense_is_refused_when_it_is_made(made, error, said):
    with pytest.raises(error, match=said):
        made()


def test_calls_that_do_not_fit_are_refused_by_name():
    cell, z, x, _ = problem()
    with pytest.raises(TypeError, match=r"until=.* must be Until\(event\)"):
        BPTT()(cell, z, x, 3, until=Same())
    for estimator in (ImplicitGradient(), PhantomGradient(), TorchDEQ()):
        with pytest.raises(ValueError, match=rf"{type(estimator).__name__} takes the last cycle.*until=..."):
            estimator(cell, z, x, 9, until=Until(Same()))
    with pytest.raises(RuntimeError, match="changes its state in place"):
        BPTT()(Stationary(lambda z, x: z.add_(x)), torch.zeros(3, 4), torch.ones(3, 4), 3, until=Until(Same()))
    with pytest.raises(ValueError, match=r"ResidualBelow: what it looks at holds no floating tensor"):
        BPTT()(cell, z, x, 9, until=Until(ResidualBelow(1e-3, of=lambda z: z > 0)))


@pytest.mark.parametrize("given", [{"until": Until(lambda z, *_: z[0][:, 0] > 9)}, {"lengths": [1, 2, 3]}])
@pytest.mark.parametrize("estimator", [BPTT(), TruncatedBPTT(2)])
def test_rows_that_cannot_keep_their_state_are_refused(estimator, given):
    grows = Stationary(lambda s, x: (torch.cat([s[0], s[0]], 1), None))
    with pytest.raises(ValueError, match=r"state\[0\] goes from shape \(3, 4\) to \(3, 8\)"):
        estimator(grows, (torch.zeros(3, 4), None), None, 3, **given)
    begins = Stationary(lambda s, x: (s[0], s[0] + 1))
    with pytest.raises(ValueError, match=r"state\[1\] goes from shape None to \(3, 4\).*zeros in place of None"):
        estimator(begins, (torch.zeros(3, 4), None), None, 3, **given)
