"""Whatever a cell reads, wherever it keeps it, gets the gradient that a plain loop under autograd gives it."""

from functools import partial

import pytest
import torch

from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    ForwardGradient,
    ForwardMode,
    ImplicitGradient,
    PhantomGradient,
    ReversibleBPTT,
    TruncatedBPTT,
)
from loopgrad.models import Damped, Leapfrog
from tests.reading_cells import READINGS, SIZE

EXACT = {
    "bptt": BPTT(),
    "sqrt": CheckpointedBPTT(),
    "every_update": CheckpointedBPTT(1),
    "binomial": CheckpointedBPTT("binomial", num_snapshots=2),
    "budget": CheckpointedBPTT(memory_budget="1MiB"),
    "forward_mode": ForwardMode(),
}
# at a fixed point that 80 updates have reached, these meet the gradient of a loop
SETTLED = {
    "truncated": TruncatedBPTT(num_steps=60),
    "phantom": PhantomGradient(num_steps=60),
    "implicit": ImplicitGradient(rtol=1e-12, max_vjps=60, forward_rtol=1e-9),
    "implicit_fallback": ImplicitGradient(forward_rtol=0.0, fallback=CheckpointedBPTT()),
}
# made once, with a graph that one backward pass uses up
ONCE = ("features_in_an_object", "views_of_one_weight", "plain_weights_of_a_replica")
LAZY = ("derived_at_the_first_update", "features_of_the_first_update")
every_reading = pytest.mark.parametrize("name", READINGS)


def drawn():
    draw = torch.Generator().manual_seed(1)
    return (torch.randn(3, SIZE, generator=draw, dtype=torch.float64) for _ in range(3))


def gradients(name, estimator, num_steps, wrap=None, inside=True):
    """Gradients of the leaves behind a cell; None for `estimator` runs a plain loop."""
    torch.manual_seed(0)
    state, x, weight = drawn()
    x.requires_grad_()
    reading = READINGS[name]()
    cell = reading.cell if wrap is None else wrap(reading.cell)
    with reading.context():
        z = state if wrap is None else cell.couple(state)
        if estimator is None:
            for step in range(num_steps):
                z = cell(z, x, step)
            z = z if wrap is None else cell.read(z)
        else:
            z = estimator(cell, state, x, num_steps).state
        if inside:
            (z * weight).sum().backward()
    if not inside:
        (z * weight).sum().backward()
    assert all(type(p) is torch.nn.Parameter for p in reading.cell.parameters())
    return [x.grad, *(leaf.grad for leaf in reading.leaves)], list(reading.cell.buffers())


@every_reading
@pytest.mark.parametrize("estimator", EXACT)
def test_exact_estimators_reach_what_a_loop_reaches(name, estimator):
    if estimator == "forward_mode" and name == "shared_statistics":
        pytest.skip("batch statistics write where a tangent must not be")
    if estimator in ("forward_mode", "budget") and name in LAZY:
        pytest.skip("what is derived in an evaluation apart from the recursion is refused by torch")
    if estimator == "binomial" and name in LAZY:
        with pytest.raises(RuntimeError, match="keeps what its first update derives.*schedule='sqrt'"):
            gradients(name, EXACT[estimator], 9)
        return
    found, buffers = gradients(name, EXACT[estimator], 9)
    exact, expected = gradients(name, None, 9)
    assert all(g is not None and g.abs().max() > 0 for g in exact)
    if estimator == "forward_mode" or name in LAZY:  # what is derived once gets its gradient in two parts
        torch.testing.assert_close(found[1:], exact[1:], rtol=1e-10, atol=1e-14)
    else:
        assert all(map(torch.equal, found, exact))
    assert all(map(torch.equal, buffers, expected))


@every_reading
@pytest.mark.parametrize("coupling", [Damped, Leapfrog])
def test_reversible_reaches_what_a_loop_through_the_coupling_reaches(name, coupling):
    if name == "shared_statistics":
        pytest.skip("batch statistics cannot be undone, and are refused")
    wrap = partial(coupling, dtype=torch.float64)
    found, exact = gradients(name, ReversibleBPTT(), 9, wrap), gradients(name, None, 9, wrap)
    if name in LAZY:
        torch.testing.assert_close(found[0], exact[0], rtol=1e-10, atol=1e-14)
    else:
        assert all(map(torch.equal, found[0], exact[0]))


@every_reading
@pytest.mark.parametrize("estimator", SETTLED)
def test_at_a_fixed_point_the_others_do_too(name, estimator):
    if name == "shared_statistics":
        pytest.skip("a map whose statistics move has no fixed point")
    found, exact = gradients(name, SETTLED[estimator], 80), gradients(name, None, 80)
    torch.testing.assert_close(found[0], exact[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["cached_symmetric", "cached_weight_norm"])
@pytest.mark.parametrize("estimator", EXACT)
def test_backward_may_run_after_the_cache_of_parametrizations_is_gone(name, estimator):
    found, exact = gradients(name, EXACT[estimator], 9, inside=False), gradients(name, None, 9, inside=False)
    torch.testing.assert_close(found[0][1:], exact[0][1:], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("way", [{}, {"perturb": "weights"}, {"mode": "central", "window": 0}])
def test_forward_gradients_of_hidden_tensors_are_drawn_too(way):
    found, _ = gradients("features_in_an_object", ForwardGradient(4, seed=0, **way), 5)
    assert all(g is not None and g.abs().max() > 0 for g in found)


def test_a_hook_of_a_parameter_fires_once():
    torch.manual_seed(0)
    counts = []
    for estimator in (BPTT(), CheckpointedBPTT(), ReversibleBPTT()):
        reading = READINGS["two_names"]()
        calls: list[torch.Tensor] = []
        for parameter in reading.cell.parameters():
            parameter.register_hook(calls.append)
            parameter.register_post_accumulate_grad_hook(calls.append)
        cell = Leapfrog(reading.cell) if isinstance(estimator, ReversibleBPTT) else reading.cell
        estimator(cell, *list(drawn())[:2], 9).state.sum().backward()
        counts.append(len(calls))
    assert counts == [4, 4, 4]


TRAINED = {name: make for name, make in READINGS.items() if "derived" not in name and name not in ONCE}


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize(
    "estimator",
    ["sqrt", "reversible", *(pytest.param(n, marks=pytest.mark.slow) for n in ("every_update", "binomial", "budget"))],
)
def test_ten_steps_of_training_follow_a_loop_and_leave_the_module_alone(name, estimator):
    if name == "shared_statistics" and estimator == "reversible":
        pytest.skip("batch statistics cannot be undone, and are refused")
    if name in LAZY and estimator in ("binomial", "budget"):
        pytest.skip("refused, or a matter of torch")
    weights = []
    for chosen in (None, EXACT.get(estimator, ReversibleBPTT())):
        torch.manual_seed(0)
        state, x, weight = drawn()
        reading = TRAINED[name]()
        cell = Damped(reading.cell, dtype=torch.float64) if estimator == "reversible" else reading.cell
        optimizer = torch.optim.Adam(reading.leaves, lr=0.05)
        held = [(n, id(p), p.requires_grad) for n, p in cell.named_parameters()]
        for _ in range(10):
            optimizer.zero_grad()
            with reading.context():
                last = BPTT() if chosen is None else chosen
                (last(cell, state, x, 7).state * weight).sum().backward()
            optimizer.step()
        assert [(n, id(p), p.requires_grad) for n, p in cell.named_parameters()] == held
        weights.append([leaf.detach() for leaf in reading.leaves])
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-12)
