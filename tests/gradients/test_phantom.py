"""The phantom gradient against its closed form at a fixed point, and the Jacobian penalty against a dense Jacobian."""

import pytest
import torch
from torch import nn

from loopgrad.gradients import PhantomGradient, Stationary, TruncatedBPTT, jacobian_penalty
from loopgrad.models import TRM


@pytest.mark.parametrize("damping", [1.0, 0.5])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_equals_the_damped_neumann_series(k, damping):
    torch.manual_seed(0)
    linear = nn.Linear(5, 5).double()
    cell = Stationary(lambda z, x: torch.tanh(0.9 * linear(z) + x), parameters=linear)
    x = torch.randn(1, 5).double()
    rollout = PhantomGradient(k, damping)(cell, torch.zeros(1, 5).double(), x, 500)
    g = torch.arange(5.0).double()
    got = torch.autograd.grad((rollout.state * g).sum(), linear.weight)[0]
    z = rollout.state.detach()
    jacobian = torch.autograd.functional.jacobian(lambda z: cell(z, x, 0)[0], z)[:, 0]
    damped = (1 - damping) * torch.eye(5).double() + damping * jacobian.T
    w = damping * sum(torch.linalg.matrix_power(damped, i) @ g for i in range(k))
    expected = torch.autograd.grad(cell(z, x, 0)[0] @ w, linear.weight)[0]
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    assert (rollout.stats.cell_evaluations, rollout.stats.vjps) == (500 + k, k)


def test_the_last_state_is_that_of_every_estimator():
    linear = nn.Linear(5, 5)
    cell = Stationary(lambda z, x: 3 * torch.sin(linear(z) + x), parameters=linear)
    state, x = torch.randn(2, 5), torch.randn(2, 5)
    phantom = PhantomGradient(3, 0.5)(cell, state, x, 7).state
    assert torch.equal(phantom, TruncatedBPTT(num_steps=1)(cell, state, x, 7).state)


@pytest.mark.parametrize("arguments", [{"num_steps": 0}, {"num_steps": 1.5}, {"damping": 0}, {"damping": 1.1}])
def test_wrong_choices_are_refused(arguments):
    with pytest.raises(ValueError, match="PhantomGradient"):
        PhantomGradient(**arguments)


def trm(**options):
    model = TRM(5, 4, hidden_size=8, num_heads=2, H_cycles=1, L_cycles=2, num_layers=1, **options)
    return model, model.initial_state(2), torch.randn(2, 4 + model.embedding.puzzle_tokens, 8)


@pytest.mark.parametrize("mixer", ["mlp", pytest.param("attention", marks=pytest.mark.slow)])
def test_penalty_estimates_the_frobenius_norm_of_the_cycle(mixer):
    torch.manual_seed(0)
    model, state, x = trm(mixer=mixer)
    names = list(state)

    def cycle(*leaves):
        z = dict(zip(names, leaves, strict=True))
        for step in range(3):
            z = model.cell(z, x, step)
        return tuple(z.values())

    blocks = torch.autograd.functional.jacobian(cycle, tuple(state.values()))
    exact = sum(block.square().sum() for row in blocks for block in row) / sum(z.numel() for z in state.values())
    generator = torch.Generator().manual_seed(1)
    found = jacobian_penalty(model.cell, state, x, 3, generator, num_probes=300)
    assert found.item() == pytest.approx(exact.item(), rel=0.05)


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
def test_penalty_has_the_gradient_of_its_value(mixer):
    torch.manual_seed(0)
    model, state, x = trm(mixer=mixer)
    model, x = model.double(), x.double()
    state = {name: z.double() for name, z in state.items()}

    def penalty():
        return jacobian_penalty(model.cell, state, x, 3, torch.Generator().manual_seed(1))

    weights = [p for p in model.cell.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(penalty(), weights)
    directions = [torch.randn_like(w) for w in weights]
    expected = sum((s * d).sum() for s, d in zip(slopes, directions, strict=True))
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w += sign * 1e-5 * d
        values.append(penalty().item())
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w -= sign * 1e-5 * d
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(expected.item(), rel=1e-5)


def test_penalty_refuses_what_it_cannot_measure():
    model, state, x = trm()
    with pytest.raises(ValueError, match="a cycle"):
        jacobian_penalty(model.cell, state, x, 2)
    with pytest.raises(ValueError, match="num_probes"):
        jacobian_penalty(model.cell, state, x, 3, num_probes=0)
