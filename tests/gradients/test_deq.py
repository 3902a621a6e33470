"""torchdeq behind our contract: the same gradient as ours where there is a fixed point, on its own cells and ours."""

import pytest
import torch
from torch import nn

from loopgrad.analysis import measure
from loopgrad.gradients import ImplicitGradient, PhantomGradient, TorchDEQ

pytest.importorskip("torchdeq")


class Two(nn.Module):
    """Two streams, one updated after the other."""

    period = 2

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, z, x, step):
        if step % 2 == 0:
            return {"a": torch.tanh(0.7 * self.linear(z["b"]) + x), "b": z["b"]}
        return {"a": z["a"], "b": torch.tanh(0.9 * z["a"])}


@pytest.fixture
def problem():
    torch.manual_seed(0)
    return (
        Two().double(),
        {"a": torch.zeros(4, 6).double(), "b": torch.zeros(4, 6).double()},
        torch.randn(4, 6).double(),
    )


def gradient(estimator, cell, state, x):
    x = x.clone().requires_grad_()
    loss = (estimator(cell, state, x, 400).state["b"] ** 2).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [x, *cell.parameters()])])


@pytest.mark.parametrize("core", ["sliced", "indexing"])
@pytest.mark.parametrize("gradient_", ["ift", "hook_ift"])
@pytest.mark.parametrize("b_solver", ["fixed_point_iter", "anderson", "broyden"])
def test_implicit_gradients_agree(problem, core, gradient_, b_solver):
    theirs = gradient(
        TorchDEQ(gradient_, b_solver=b_solver, f_tol=1e-10, b_tol=1e-10, b_max_iter=200, core=core), *problem
    )
    ours = gradient(ImplicitGradient(rtol=1e-10, max_vjps=100), *problem)
    torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-7)


def test_phantom_gradients_agree(problem):
    theirs = gradient(TorchDEQ("phantom", f_tol=1e-12, num_steps=4, damping=0.6), *problem)
    ours = gradient(PhantomGradient(num_steps=4, damping=0.6), *problem)
    torch.testing.assert_close(theirs, ours, rtol=1e-8, atol=1e-9)


def test_its_costs_are_counted(problem):
    cell, state, x = problem
    rollouts = []

    def run():
        rollouts.append(TorchDEQ(b_tol=0, b_max_iter=5)(cell, state, x, 40))
        return (rollouts[-1].state["b"] ** 2).sum()

    found = measure(run, cell=cell, exclude=[state, x], repeats=0, warmup=0)
    assert (rollouts[0].stats.cell_evaluations, rollouts[0].stats.vjps) == (found.cell_evaluations, found.vjps)
    assert found.vjps == 2 * (5 + 1)


def test_wrong_choices_are_refused():
    with pytest.raises(ValueError, match="hook_ift"):
        TorchDEQ("implicit")
    with pytest.raises(ValueError, match="sliced"):
        TorchDEQ(core="whole")
