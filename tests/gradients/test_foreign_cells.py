"""Cells in the shape of public models: under every estimator BPTT's gradient, a known relation, or a reason."""

import pytest
import torch
from foreign_cells import FOREIGN, build
from foreign_estimators import CASES, REFUSED, Case, exact, refused, rollout
from problems import Problem, detached

from loopgrad.gradients import ForwardMode

pytestmark = pytest.mark.usefixtures("float64")
every_model = pytest.mark.parametrize("model", FOREIGN)

# further schedules and lengths of what the fast cases have
FURTHER = ("checkpointed_4", "checkpointed_binomial_1", "checkpointed_budget", "truncated_whole", "random_whole")
# a surrogate gradient has no rule for forward differentiation
NOT_FORWARD = {"spiking": "jvp and setup_context for an autograd.Function"}


def gradients(foreign, loss):
    """The gradients of all that trains, zeros where there is none."""
    parameters = [p for p in foreign.module.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def outcome(model, case, loss_of):
    """Loss, gradients, state of the generator and buffers of one iteration."""
    foreign = build(model)
    torch.manual_seed(1)
    loss = loss_of(foreign, case.begin(foreign))
    drawn = torch.get_rng_state()
    found = gradients(foreign, loss)
    assert torch.equal(torch.get_rng_state(), drawn), "backward moved the global generator"
    return loss.detach(), found, drawn, dict(foreign.module.named_buffers())


@pytest.mark.one_in(3)
@every_model
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in FURTHER else n for n in CASES])
def test_gradient_is_bptts_or_meets_its_relation(name, model):
    case = CASES[name]

    def estimated(foreign, problem):
        return rollout(case, foreign, problem)

    if (name, model) in REFUSED:
        with refused(name, model):
            outcome(model, case, estimated)
        return
    loss, got, drawn, buffers = outcome(model, case, estimated)
    expected = outcome(model, case, case.reference)[1]
    assert sum(float(g.norm()) for g in expected) > 0
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    # sums of a weighted mean or of tangents round otherwise; so does a weight that the loss reads as well
    if case.reference is exact and not name.startswith(("random", "forward")) and model != "language_model":
        assert all(map(torch.equal, got, expected))
    by_hand, _, drawn_by_hand, buffers_by_hand = outcome(model, case, exact)
    assert torch.equal(loss, by_hand)
    if not name.startswith("phantom"):  # it goes on beyond the end
        assert torch.equal(drawn, drawn_by_hand)
        assert all(torch.equal(buffer, buffers_by_hand[key]) for key, buffer in buffers.items())


def apart(model):
    """A model whose recursion starts from constants: what comes before it has no part in the gradient."""
    foreign = build(model)
    torch.manual_seed(1)
    problem = foreign.begin()
    return foreign, Problem(problem.cell, detached(problem.state), detached(problem.inputs))


@every_model
def test_forward_mode_gives_bptts_gradient_of_the_smallest_parameter(model):
    foreign, problem = apart(model)
    named = {name: p for name, p in problem.cell.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(exact(foreign, problem), list(named.values()), allow_unused=True)
    expected = {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}
    name = min(expected, key=lambda name: expected[name].numel())
    foreign, problem = apart(model)
    case = Case(ForwardMode([name]))
    if model in NOT_FORWARD:
        with pytest.raises(RuntimeError, match=NOT_FORWARD[model]):
            rollout(case, foreign, problem)
        return
    (got,) = torch.autograd.grad(rollout(case, foreign, problem), dict(problem.cell.named_parameters())[name])
    torch.testing.assert_close(got, expected[name], rtol=1e-9, atol=1e-12)
