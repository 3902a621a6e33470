"""What takes samples apart takes the right ones: noise without a bias, samples that are not finite, rows of inputs."""

import pytest
import torch
from batch_cases import B, build
from problems import leaves_of, loss_of

from loopgrad.gradients import (
    BPTT,
    BatchDims,
    CheckpointedBPTT,
    ForwardGradient,
    ImplicitGradient,
    Stationary,
    TruncatedBPTT,
)


def root_mean_square_errors(built, batch_dim, num_tangents, **noise):
    """Relative error of the gradient over six draws, in the parameters and in z_0 and inputs."""
    parameters = list(built.cell.parameters())
    sources = [*parameters, *leaves_of((built.state, built.inputs))]
    run = (built.cell, built.state, built.inputs, 4)
    exact = torch.autograd.grad(loss_of(BPTT()(*run).state), sources)
    found = []
    for part in (slice(0, len(parameters)), slice(len(parameters), None)):
        squares = torch.zeros(()).double()
        for seed in range(6):
            estimator = ForwardGradient(num_tangents, seed=seed, chunk_size=4000, **noise)
            drawn = torch.autograd.grad(loss_of(estimator(*run, batch_dim=batch_dim).state), sources)
            squares += sum((g - e).square().sum() for g, e in zip(drawn[part], exact[part], strict=True)) / 6
        found.append((squares / sum(e.square().sum() for e in exact[part])).sqrt().item())
    return found


DRAWN = {
    "state noise": ("stack", lambda built: built.batch_dim, "state"),
    "state noise on channels": ("convolved", lambda built: built.batch_dim, "state"),
    "weight noise": ("convolved", lambda built: built.batch_dim, "weights"),
    "weight noise, told of the state alone": ("convolved", lambda built: built.batch_dim.state, "weights"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_the_error_of_a_forward_gradient_falls_as_the_root_of_the_tangents(name):
    case, told, perturb = DRAWN[name]
    built = build(case)
    few, many = (root_mean_square_errors(built, told(built), k, perturb=perturb) for k in (250, 4000))
    for before, after in zip(few, many, strict=True):
        assert after == pytest.approx(before / 4, rel=0.35)  # of six draws, a root mean square is known to 30 %


@pytest.mark.slow
@pytest.mark.parametrize("case", ["stack", "convolved"])
def test_rows_that_are_no_samples_are_a_bias(case):
    built = build(case)
    few, many = (root_mean_square_errors(built, 0, num_tangents) for num_tangents in (250, 4000))
    assert all(after > 0.7 * before for before, after in zip(few, many, strict=True))


@pytest.mark.parametrize("mode", ["jvp", "central"])
def test_inputs_that_are_not_said_to_hold_samples_are_weighed_by_all_of_them(mode):
    """Time first, as many updates as samples: dimension 0 looks like the batch, and is taken for it by default."""
    torch.manual_seed(0)
    w, z, x = torch.randn(2, 2).double(), torch.zeros(B, 2).double(), torch.randn(B, B, 2).double().requires_grad_()

    class TimeFirst(torch.nn.Module):
        def forward(self, state, inputs, step):
            return torch.tanh(state @ w + inputs[step])

    def gradient(scope, batch_dim):
        estimator = ForwardGradient(8, perturb="weights", mode=mode, scope=scope, seed=0)
        last = estimator(TimeFirst(), z, x, B, batch_dim=batch_dim).state
        return torch.autograd.grad(last.square().sum(), x)[0]

    whole = gradient("batch", 0)
    torch.testing.assert_close(gradient("sample", BatchDims(0)), whole, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(gradient("sample", 0), whole)
    assert not torch.allclose(gradient("sample", BatchDims(0, inputs=1)), whole)  # less noise


@pytest.mark.parametrize("where", ["state", "inputs"])
def test_a_sample_that_is_not_finite_leaves_the_others_as_they_are(where):
    built, estimator = build("stack"), ImplicitGradient(forward_rtol=10, max_gradient_error=10)
    parameters, good = list(built.cell.parameters()), [0, 2]
    h, y, x = (leaf.detach().clone() for leaf in (*built.state, built.inputs))
    (x if where == "inputs" else h)[:, 1] = torch.nan
    # where nothing is said of inputs, their rows stay: finite ones do no harm
    dims = built.batch_dim if where == "inputs" else built.batch_dim.state
    rollout = estimator(built.cell, (h, y), x, 5, batch_dim=dims)
    found = torch.autograd.grad(loss_of([rollout.state[0][:, good], rollout.state[1][good]]), parameters)
    alone = estimator(built.cell, (h[:, good], y[good]), x[:, good], 5, batch_dim=built.batch_dim)
    expected = torch.autograd.grad(loss_of(alone.state), parameters)
    assert rollout.stats.numbers()["finite"] == pytest.approx(2 / 3)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


def test_the_verdict_has_a_value_for_each_sample():
    """Layers that settle at their own rates, samples that start at different distances; three of each."""
    start = torch.tensor([1.0, 1e-3, 0.0]).double().view(1, B, 1).expand(B, B, 2)
    rates = torch.tensor([0.5, 0.2, 0.1]).double().view(B, 1, 1).requires_grad_()
    cell = Stationary(lambda z, x: 1 + rates * (z - 1), parameters=[rates])
    rollout = ImplicitGradient()(cell, 1 + start, None, 4, batch_dim=1)
    rollout.state.square().sum().backward()
    moved = (1 + start[:, :, 0].T * rates.view(B) ** 4).detach()
    after = 1 + (moved - 1) * rates.detach().view(B)
    expected = (after - moved).norm(dim=1) / after.norm(dim=1)
    torch.testing.assert_close(rollout.stats.verdict.forward_residual, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    "estimator", [BPTT(), TruncatedBPTT(2), CheckpointedBPTT(2), ForwardGradient(seed=0, window=3)]
)
def test_flags_and_counters_go_along_with_their_own_batch_or_none(estimator):
    """Flags (batch,), tokens (layers, batch), a counter and an absent part beside z, (layers, batch, size)."""
    weight = torch.eye(2).double().requires_grad_()

    def update(s, x):
        z = torch.where(s["halted"].view(1, 3, 1), s["z"], torch.tanh(s["z"] @ weight + s["tokens"].unsqueeze(2)))
        return s | {"z": z, "halted": s["halted"] | (s["count"] == x), "count": s["count"] + 1}

    tokens = torch.arange(9).view(3, 3) % 2
    state = {"z": torch.rand(3, 3, 2).double(), "halted": torch.zeros(3).bool(), "tokens": tokens}
    state |= {"count": torch.tensor(0), "no": None}
    x, dims = torch.tensor([0, 1, 99]), {"z": 1, "halted": 0, "tokens": 1, "count": None, "no": None}
    cell = Stationary(update, [weight])
    last = estimator(cell, state, x, 3, batch_dim=dims).state
    expected = BPTT()(cell, state, x, 3).state
    assert last["halted"].tolist() == [True, True, False] and int(last["count"]) == 3 and last["no"] is None
    assert torch.equal(last["z"], expected["z"]) and torch.equal(last["tokens"], tokens)
    found, exact = (torch.autograd.grad(s["z"][:, 2].sum(), weight)[0] for s in (last, expected))
    if estimator.kind != "biased":
        torch.testing.assert_close(found, exact)
