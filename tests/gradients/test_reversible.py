"""What ReversibleBPTT alone promises: bit equality, memory, verification, refusals."""

import math
import warnings

import pytest
import torch
from cases import CELLS, build, leaves_of, loss_of
from torch import nn

from loopgrad.analysis.counters import PeakBytes
from loopgrad.gradients import BPTT, CheckpointedBPTT, ReversibleBPTT, Stationary
from loopgrad.gradients.recompute import Conditions
from loopgrad.models import Damped, Leapfrog, Momentum

COUPLINGS = {
    "damped 1/2": lambda cell: Damped(cell),
    "damped 1/4": lambda cell: Damped(cell, "1/4"),
    "damped 1/8": lambda cell: Damped(cell, "1/8"),
    "damped 4/5": lambda cell: Damped(cell, "4/5"),
    "damped per update": lambda cell: Damped(cell, "1/4", per="update"),
    "leapfrog": lambda cell: Leapfrog(cell, 1 / 32),
    "momentum 7/8": lambda cell: Momentum(cell, "7/8"),
}
every_coupling = pytest.mark.parametrize("coupling", COUPLINGS)
REWRITING = ("buffers", "normalised")


class Mixing(nn.Module):
    """A bounded cell with a parameter that it uses twice."""

    def __init__(self, size: int = 8):
        super().__init__()
        self.into, self.out, self.gain = (
            nn.Linear(size, 2 * size),
            nn.Linear(2 * size, size),
            nn.Parameter(torch.ones(size)),
        )

    def forward(self, state, inputs, step):
        hidden = torch.tanh(self.into(state * self.gain + inputs))
        return torch.tanh(self.out(hidden)) * self.gain


def problem(coupling, dtype=torch.float32):
    torch.manual_seed(0)
    cell = COUPLINGS[coupling](Mixing()).to(dtype)
    return cell, torch.randn(3, 8).to(dtype).requires_grad_(), torch.randn(3, 8).to(dtype).requires_grad_()


def gradients(estimator, cell, z, x, num_steps):
    state = estimator(cell, z, x, num_steps).state
    return state, torch.autograd.grad(loss_of(state), [z, x, *cell.parameters()])


@every_coupling
@pytest.mark.parametrize("num_steps", [1, 2, 33, 1024])
def test_gradient_equals_bptt_bit_for_bit(coupling, num_steps):
    cell, z, x = problem(coupling)
    ours, bptt = (gradients(estimator, cell, z, x, num_steps) for estimator in (ReversibleBPTT(), BPTT()))
    assert torch.equal(ours[0], bptt[0])
    assert all(map(torch.equal, ours[1], bptt[1]))


@every_coupling
@pytest.mark.parametrize("cell", [name for name in CELLS if name not in (*REWRITING, "twice")])
def test_every_cell_of_the_suite_equals_bptt_bit_for_bit(coupling, cell):
    found = []
    for estimator in (ReversibleBPTT(), BPTT()):
        case = build(cell, torch.float32)
        torch.manual_seed(3)
        state = estimator(COUPLINGS[coupling](case.cell), case.state, case.inputs, 13).state
        sources = list(case.sources().values())
        found.append([*leaves_of(state), *torch.autograd.grad(loss_of(state), sources, allow_unused=True)])
    assert all(a is None if b is None else torch.equal(a, b) for a, b in zip(*found, strict=True))


@every_coupling
def test_error_is_that_of_float32_itself(coupling):
    """Against the same recursion in float64 without a grid; the yardstick is that recursion in float32."""
    found = {}
    for name, dtype, arithmetic in (
        ("ours", torch.float32, "exact"),
        ("float32", torch.float32, "float32"),
        ("float64", torch.float64, "float64"),
    ):
        cell, z, x = problem(coupling, torch.float64)
        cell = cell.to(dtype)
        cell.arithmetic = arithmetic
        if arithmetic != "exact":
            cell.ratio = None
        estimator = ReversibleBPTT() if name == "ours" else BPTT()
        z, x = (t.detach().to(dtype).requires_grad_() for t in (z, x))
        grads = gradients(estimator, cell, z, x, 1024)[1]
        found[name] = torch.cat([g.flatten().double() for g in grads])
    errors = {name: float((found[name] - found["float64"]).norm() / found["float64"].norm()) for name in found}
    assert 0 < errors["ours"] <= 2 * errors["float32"]


class Mixed(nn.Module):
    """Under autocast: a weight that is cast twice per update, one that is cast and also read as it is, a cast input."""

    def __init__(self):
        super().__init__()
        self.twice, self.both = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, z, x, step):
        z = torch.tanh(self.twice(z) + self.both(x) + self.both.weight.mean())
        return torch.tanh(self.twice(z)) if step % 2 else self.both(z).sin()


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("cache", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cell", ["plain", "mixed", "mixed, two updates a cycle"])
@every_coupling
def test_bf16_autocast_is_met_again(coupling, cell, cache, encoded):
    """With autocast's cache a weight is cast once, and its gradient is a sum in bf16; without, each use has a cast."""
    coupled, z, x = problem(coupling)
    if cell != "plain":
        coupled.cell = Mixed().requires_grad_()
        coupled.cell.period = 2 if "two" in cell else 1
    found = []
    for estimator in (ReversibleBPTT(), BPTT()):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            state = estimator(coupled, z, x.sin() if encoded else x, 257).state
        found.append([state, *torch.autograd.grad(loss_of(state), [z, x, *coupled.parameters()])])
    assert all(map(torch.equal, *found))


def test_a_cast_kept_for_a_whole_region_changes_the_sum():
    """Or the test above would not see whether the sums are taken in bf16."""
    cell, z, x = problem("leapfrog")
    found = []
    for cache in (True, False):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            state = ReversibleBPTT()(cell, z, x, 257).state
        found.append(torch.autograd.grad(loss_of(state), list(cell.parameters())))
    assert not all(map(torch.equal, *found))


def saved_bytes(estimator, cell, z, x, num_steps):
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        state = estimator(cell, z, x, num_steps).state
    owned = {t.untyped_storage().data_ptr() for t in (z, x, *cell.parameters())}
    kept = sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in owned)
    del state
    return kept


def peak_bytes(estimator, cell, z, x, num_steps):
    with PeakBytes() as peak:
        loss_of(estimator(cell, z, x, num_steps).state).backward()
    return peak.peak


@pytest.mark.parametrize("measure", [saved_bytes, pytest.param(peak_bytes, marks=pytest.mark.slow)])
@every_coupling
def test_memory_does_not_grow_but_for_the_lost_digits(coupling, measure):
    cell, z, x = problem(coupling)
    short, long = (measure(ReversibleBPTT(), cell, z, x, num_steps) for num_steps in (16, 1024))
    kept = {"damped 1/2": 0.5, "damped 1/4": 0.75, "damped 1/8": 0.875, "damped 4/5": 0.2, "damped per update": 0.75}
    kept |= {"momentum 7/8": 0.875}
    bits = math.log2(1 / kept[coupling]) if coupling in kept else 0
    unpacked = 8 * z.numel() if measure is peak_bytes and bits else 0  # one word at a time, in backward
    assert long - short <= 1.25 * bits * 1008 * z.numel() / 8 + unpacked
    if not bits:
        assert long == short
    assert measure(BPTT(), cell, z, x, 1024) > 30 * long


def noisy():
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(4, 4)
    return Stationary(lambda z, x: torch.tanh(linear(z)) + 1e-7 * torch.rand(4, generator=generator), parameters=linear)


def test_a_cell_that_is_not_the_same_twice_is_found_out():
    z = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    state = ReversibleBPTT()(Leapfrog(noisy()), z, None, 33).state
    with pytest.raises(RuntimeError, match="first state"):
        state.sum().backward()
    state = ReversibleBPTT(verify="warn")(Leapfrog(noisy()), z, None, 33).state
    with pytest.warns(UserWarning, match="first state"):
        state.sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ReversibleBPTT(verify="off")(Leapfrog(noisy()), z, None, 33).state.sum().backward()


@pytest.mark.parametrize("hazard", ["autocast", "dropout", "train flag"])
def test_a_condition_that_is_not_met_again_is_found_out(hazard, monkeypatch):
    """With the restoring of one condition taken out, verification must see it."""
    case = build("dropout", torch.float32)
    cell = Leapfrog(case.cell, 0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=hazard == "autocast"):
        if hazard == "autocast":
            cell.eval()
        state = ReversibleBPTT()(cell, case.state, case.inputs, 17).state
    noted = state.grad_fn.next_functions[0][0]
    node = next(n for n in reachable(noted) if hasattr(n, "conditions"))
    if hazard == "autocast":
        node.conditions.autocast = []
    elif hazard == "dropout":
        monkeypatch.setattr(Conditions, "set_generators", lambda self, states: None)
    else:
        node.conditions.training = [False] * len(node.conditions.training)
    with pytest.raises(RuntimeError, match="first state"):
        state.sum().backward()


def reachable(node):
    queue, seen = [node], set()
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            queue += [child for child, _ in node.next_functions]
    return seen


def test_an_exhausted_grid_is_found_out():
    cell = Leapfrog(Stationary(lambda z, x: torch.sin(z) + x))
    z, x = torch.full((1, 4), 0.3, requires_grad=True), torch.full((1, 4), 2.0**31)
    state = ReversibleBPTT()(cell, z, x, 64).state
    with pytest.raises(RuntimeError, match=r"beyond 2\^20"):
        state.sum().backward()


@every_coupling
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_reaches_the_gradient_and_no_neighbour(coupling, bad):
    cell, z, x = problem(coupling)
    with torch.no_grad():
        z[1, 2] = bad
    ours, bptt = (gradients(estimator, cell, z, x, 9) for estimator in (ReversibleBPTT(), BPTT()))
    assert not ours[0][1].isfinite().all()
    for mine, theirs in zip(ours[1], bptt[1], strict=True):
        assert torch.equal(mine.isfinite(), theirs.isfinite())
        assert torch.equal(mine.nan_to_num(0, 0, 0), theirs.nan_to_num(0, 0, 0))
    assert ours[1][1][0].isfinite().all() and not ours[1][2].isfinite().all()


@pytest.mark.parametrize("cell", REWRITING)
def test_an_update_that_rewrites_buffers_is_refused(cell):
    case = build(cell)
    with pytest.raises(RuntimeError, match="buffer.*CheckpointedBPTT"):
        ReversibleBPTT()(Damped(case.cell), case.state, case.inputs, 5)


@pytest.mark.parametrize("estimator", [ReversibleBPTT(), CheckpointedBPTT()])
def test_a_buffer_changed_before_backward_is_refused(estimator):
    case = build("buffers")
    case.cell.eval()
    case.cell.forward = lambda state, inputs, step: torch.tanh(case.cell.norm(case.cell.linear(state)) + inputs)
    state = estimator(Damped(case.cell), case.state, case.inputs, 5).state
    case.cell.norm.running_mean += 1
    with pytest.raises(RuntimeError, match="running_mean was changed between"):
        state.sum().backward()


def test_updates_in_place_are_refused():
    linear = nn.Linear(4, 4)
    x = torch.ones(2, 4)
    cell = Leapfrog(Stationary(lambda z, x: torch.tanh(linear(z)) + x.add_(1), parameters=linear))
    with pytest.raises(RuntimeError, match="in place"):
        ReversibleBPTT()(cell, torch.zeros(2, 4), x, 5)


def test_a_parameter_changed_before_backward_is_refused():
    cell, z, x = problem("damped 1/2")
    state = ReversibleBPTT()(cell, z, x, 5).state
    with torch.no_grad():
        cell.cell.gain += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        state.sum().backward()


def test_a_tensor_the_cell_hides_is_refused():
    hidden = torch.ones(4, requires_grad=True)
    cell = Damped(Stationary(lambda z, x: torch.tanh(z * hidden + x)))
    state = ReversibleBPTT()(cell, torch.zeros(2, 4), torch.ones(2, 4, requires_grad=True), 9).state
    with pytest.raises(RuntimeError, match=r"shape \(4,\).*Stationary\(fn, parameters="):
        state.sum().backward()


def test_a_cell_that_cannot_be_undone_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"Damped\(Mixing\(\.\.\.\)\).*CheckpointedBPTT"):
        ReversibleBPTT()(Mixing(), torch.zeros(1, 8), torch.zeros(1, 8), 4)


@pytest.mark.parametrize(
    ("make", "safe"),
    [
        (lambda c: Damped(c, "1/2", arithmetic="float32"), 40),
        (lambda c: Damped(c, "1/2", arithmetic="float64"), 96),
        (lambda c: Damped(c, "4/5", arithmetic="float64"), 41),
        (lambda c: Momentum(c, "1/2", arithmetic="float32"), 20),
    ],
)
def test_rounding_arithmetic_is_refused_beyond_its_length_unless_anchored(make, safe):
    torch.manual_seed(0)
    cell, z, x = make(Mixing()), torch.randn(3, 8), torch.randn(3, 8)
    assert cell.safe_length == safe
    with pytest.raises(ValueError, match=rf"{safe} updates.*anchors={safe}"):
        ReversibleBPTT()(cell, z, x, safe + 1)
    with pytest.raises(ValueError, match=rf"anchors={safe}"):
        ReversibleBPTT(anchors=safe + 1)(cell, z, x, 4 * safe)
    ours = [
        torch.autograd.grad(loss_of(e(cell, z, x, 300).state), list(cell.parameters()))
        for e in (ReversibleBPTT(anchors=10), BPTT())
    ]
    for mine, theirs in zip(*ours, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"verify": "yes"}, "verify"), ({"anchors": 0}, "anchors"), ({"anchors": 2.0}, "anchors")],
)
def test_wrong_choices_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReversibleBPTT(**arguments)


def test_a_plain_state_comes_back_plain_and_a_coupled_one_coupled():
    cell, z, x = problem("damped 1/2")
    plain, coupled = ReversibleBPTT()(cell, z, x, 6).state, ReversibleBPTT()(cell, cell.couple(z), x, 6).state
    assert plain.dtype == torch.float32 and torch.equal(cell.read(coupled), plain)
    again = ReversibleBPTT()(cell, coupled, x, 6).state  # going on from digits that are not zero
    again.current.sum().backward()
