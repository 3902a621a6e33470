"""State outside the state, and what changes between forward and backward: the gradient of BPTT, or an error."""

import pytest
import torch
from outside_cells import CHANGES, OUTSIDE, SIZE, Outside, Scaled

from loopgrad.gradients import BPTT, CheckpointedBPTT, ForwardGradient, ForwardMode, ImplicitGradient, ReversibleBPTT
from loopgrad.gradients.solvers import Anderson, Iteration
from loopgrad.models import Damped, Leapfrog, Momentum

STEPS = 7
CHECKPOINTED = {
    "sqrt": CheckpointedBPTT(),
    "1": CheckpointedBPTT(1),
    "3": CheckpointedBPTT(3),
    "7": CheckpointedBPTT(7),
    "binomial 0": CheckpointedBPTT("binomial", num_snapshots=0),
    "binomial 2": CheckpointedBPTT("binomial", num_snapshots=2),
    "offload": CheckpointedBPTT(offload="cpu"),
}
REVERSIBLE = {
    f"{coupling.__name__} {arithmetic} {anchors}": (coupling, arithmetic, anchors)
    for coupling in (Damped, Leapfrog, Momentum)
    for arithmetic, anchors in (("exact", 3), ("float64", 1), ("float64", None))
}


def case(cell):
    torch.manual_seed(1)
    z, x = (torch.randn(3, SIZE, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return cell, z, x


def gradients(estimator, cell, z, x, inner=None, change=None):
    state = estimator(cell, z, x, STEPS).state
    inner = inner or cell
    if change is not None:
        with torch.no_grad():
            change(inner)
    return torch.autograd.grad(state.square().sum(), [z, x, *inner.linear.parameters()])


def exact_or_refused(estimator, make, wrap=lambda cell: cell, tolerance=0.0, change=None):
    """Return whether it was refused; the reference is BPTT on a new cell, where nothing changes in between."""
    cell, z, x = case(make())
    inner, cell = cell, wrap(cell)
    fresh, *at = case(make())
    wanted = gradients(BPTT(), wrap(fresh), *at, fresh)
    try:
        found = gradients(estimator, cell, z, x, inner, change)
    except RuntimeError as error:
        assert any(said in str(error) for said in ("again", "changed", "state", "buffer", "inplace operation")), error
        return True
    for got, true in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, true, rtol=tolerance, atol=tolerance)
    return False


@pytest.mark.parametrize("estimator", CHECKPOINTED)
@pytest.mark.parametrize("name", OUTSIDE)
def test_checkpoints_are_exact_or_refused(name, estimator):
    exact_or_refused(CHECKPOINTED[estimator], OUTSIDE[name])


@pytest.mark.one_in(2)
@pytest.mark.parametrize("how", REVERSIBLE)
@pytest.mark.parametrize("name", OUTSIDE)
def test_couplings_are_exact_or_refused(name, how):
    coupling, arithmetic, anchors = REVERSIBLE[how]
    tolerance = 0.0 if arithmetic == "exact" else 1e-8
    exact_or_refused(
        ReversibleBPTT(anchors=anchors),
        OUTSIDE[name],
        lambda cell: coupling(cell, arithmetic=arithmetic, dtype=torch.float64),
        tolerance,
    )


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_fallback_of_an_implicit_gradient_is_exact_or_refused(name):
    """Of a fallback that goes through the whole recursion the gradient is BPTT's, up to that of z_0 alone."""
    for fallback in (CheckpointedBPTT(), BPTT()):
        exact_or_refused(ImplicitGradient(forward_rtol=0.0, fallback=fallback), OUTSIDE[name], tolerance=1e-9)


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_implicit_gradient_that_is_trusted_is_near_that_of_bptt_or_refused(name):
    (cell, z, x), (fresh, *at) = case(OUTSIDE[name]()), case(OUTSIDE[name]())
    (wanted,) = torch.autograd.grad(BPTT()(fresh, *at, 60).state.square().sum(), fresh.linear.weight)
    try:
        rollout = ImplicitGradient()(cell, z, x, 60)
        (found,) = torch.autograd.grad(rollout.state.square().sum(), cell.linear.weight)
    except RuntimeError as error:
        assert "again" in str(error) or "keeps a tensor" in str(error)
    else:
        assert rollout.stats.verdict.trusted.all()
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max()))


@pytest.mark.parametrize("forward", [Iteration(), Anderson()])
@pytest.mark.parametrize("name", ["Counts", "CountsInATensor", "OwnGenerator", "PythonRandom"])
def test_a_map_that_changes_from_call_to_call_has_no_implicit_gradient(name, forward):
    cell, z, x = case(OUTSIDE[name]())
    state = ImplicitGradient(forward=forward)(cell, z, x, 60).state
    with pytest.raises(RuntimeError, match="again"):
        state.sum().backward()


@pytest.mark.parametrize("name", ["Counts", "OwnGenerator", "PythonRandom", "CountsInATensor"])
def test_a_second_recursion_that_goes_elsewhere_is_refused(name):
    cell, z, x = case(OUTSIDE[name]())
    with pytest.raises(RuntimeError, match="again|in-place|forward AD"):
        ForwardGradient(2, seed=0)(cell, z, x, STEPS).state.sum().backward()
    with pytest.raises(RuntimeError, match="again|in-place|forward AD"):
        ForwardMode(chunk_size=4)(cell, z, x, STEPS)


@pytest.mark.parametrize("anchors", [None, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_before_backward_is_refused_or_changes_nothing(change, anchors):
    for estimator in () if anchors else CHECKPOINTED.values():
        exact_or_refused(estimator, Scaled, change=CHANGES[change])
    for coupling in (Damped, Leapfrog, Momentum):
        exact_or_refused(
            ReversibleBPTT(anchors=anchors),
            Scaled,
            lambda cell, coupling=coupling: coupling(cell),
            0.0,
            CHANGES[change],
        )
    fallback = ImplicitGradient(forward_rtol=0.0, fallback=CheckpointedBPTT())
    exact_or_refused(fallback, Scaled, tolerance=1e-9, change=CHANGES[change])


@pytest.mark.parametrize("change", ["weight", "bias"])
def test_weights_that_change_past_autograd_are_noticed(change):
    """BPTT itself is wrong here: its graph reads the new weights and the old states."""

    def write(cell):
        getattr(cell.linear, change).data += 0.3

    estimators = [(e, lambda cell: cell) for e in (*CHECKPOINTED.values(), ImplicitGradient(forward_rtol=0.0))]
    estimators += [(ReversibleBPTT(anchors=anchors), Leapfrog) for anchors in (None, 3)]
    for estimator, wrap in estimators:
        cell, z, x = case(Outside())
        with pytest.raises(RuntimeError, match="again"):
            gradients(estimator, wrap(cell), z, x, cell, write)


def test_a_weight_that_freezes_before_backward_gets_what_bptt_gives_it():
    found = []
    for estimator, wrap in ((BPTT(), Leapfrog), (CheckpointedBPTT(), Leapfrog), (ReversibleBPTT(), Leapfrog)):
        cell, z, x = case(Outside())
        state = estimator(wrap(cell), z, x, STEPS).state
        cell.linear.bias.requires_grad_(False)
        state.square().sum().backward()
        found.append([z.grad, x.grad, cell.linear.weight.grad, cell.linear.bias.grad])
    for other in found[1:]:
        for got, true in zip(other, found[0], strict=True):
            assert (got is None) == (true is None) and (got is None or torch.equal(got, true))
