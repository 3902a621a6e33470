"""Inference mode, empty and expanded states, states that grow, sparse tables and numpy: right, or one line."""

import numpy as np
import pytest
import torch
from torch import nn

from loopgrad.analysis import (
    CellSite,
    Recorder,
    StateMap,
    bias_and_variance,
    cast,
    classify,
    eigenvalues,
    find_fixed_points,
    gradient_gaps,
    gradients_of,
    lyapunov,
    multistart,
    operator_norm,
    record,
    reference_gradients,
    rounding_error,
    spectral_radius,
)
from loopgrad.gradients import BPTT, Stationary, TruncatedBPTT

WIDE = torch.float64


def contracting(seed=0, sparse=False):
    torch.manual_seed(seed)
    linear = nn.Linear(4, 4)
    return Stationary(lambda z, x: torch.tanh(linear(z) / 2 + x), parameters=linear)


def numbers(shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def every_analysis(cell, z, x):
    """Numbers of all of them."""
    f = StateMap(cell, z, x)
    trace = record(cell, z, x, 24, lags=8, reevaluate=WIDE)
    found = {"norm": trace.norm["state"], "joint": trace.joint, "rounding": rounding_error(cell, z, x)}
    found["label"] = classify(trace)["state"].label == "converged"
    found |= {"radius": spectral_radius(f, f.point), "norms": operator_norm(f, f.point)}
    found |= {"eigenvalues": eigenvalues(f, f.point, 2), "exponents": lyapunov(f, f.point, 20).mean}
    search = find_fixed_points(f, f.point)
    found |= {"search": search.state.numpy(), "stable": search.radius}
    found["ends"] = multistart(f, torch.stack([f.point, -f.point]), 9).end.numpy()
    return found


def check_same(found, expected):
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12, atol=1e-12, err_msg=name)


def test_states_and_inputs_made_under_inference_mode_are_taken():
    cell, z, x = contracting(), numbers((3, 4)), numbers((3, 4), 2)
    expected = every_analysis(cell, z, x)
    with torch.inference_mode():
        frozen_z, frozen_x = z.clone(), x.clone()
    check_same(every_analysis(cell, frozen_z, frozen_x), expected)
    check_same(every_analysis(cell, z, frozen_x), expected)


def test_analyses_under_inference_mode_find_what_they_find_outside():
    """A Jacobian of zeros, and exponents of -inf, is what a tape that is switched off says."""
    cell, z, x = contracting(), numbers((3, 4)), numbers((3, 4), 2)

    def loss(own, estimator=None, rows=None):
        dtype = next(own.parameters()).dtype
        return (estimator or BPTT())(own, cast(z, dtype), cast(x, dtype), 4).state.square().sum()

    expected, gradient = every_analysis(cell, z, x), gradients_of(loss, cell)
    exact = reference_gradients(loss, cell)
    with torch.inference_mode():
        check_same(every_analysis(cell, z, x), expected)
        check_same(every_analysis(cell, z.clone(), x.clone()), expected)
        for name, values in reference_gradients(loss, cell).items():
            assert torch.equal(values, exact[name])
        for name, values in gradients_of(loss, cell).items():
            assert torch.equal(values, gradient[name])
        assert bias_and_variance(TruncatedBPTT(2), loss, cell, draws=4).variance == 0.0
        (gap,) = gradient_gaps({"one": TruncatedBPTT(1)}, loss, cell, cell, z, x, 4)
    (outside,) = gradient_gaps({"one": TruncatedBPTT(1)}, loss, cell, cell, z, x, 4)
    assert gap.cosine == outside.cosine and (gap.radius == outside.radius).all()


def test_an_empty_batch_gives_empty_traces_and_no_map():
    cell, z, x = contracting(), torch.zeros(0, 4), torch.zeros(0, 4)
    trace, recorder = record(cell, z, x, 24, lags=8, reevaluate=WIDE), Recorder(lags=8)
    with recorder.attach(cell, CellSite("")):
        BPTT()(cell, z, x, 24)
    for found in (trace, recorder.trace()):
        assert found.norm["state"].shape == (25, 0) and found.recurrence["state"].shape == (8, 24, 0)
        verdicts = classify(found)["joint"]
        assert verdicts.counts() == {} and verdicts.radius.shape == verdicts.residual.shape == (0,)
        assert repr(found) and repr(verdicts)
        assert found.quantiles()["joint"]["map"] == [None, None, None]
    assert rounding_error(cell, z, x).shape == (0,)
    assert record(Stationary(lambda z, x: z / 2), torch.zeros(0), None, 3).joint.shape == (0,)
    with pytest.raises(ValueError, match="state has batch 0.*leave empty batches out"):
        StateMap(cell, z, x)


def test_an_expanded_state_is_as_good_as_one_of_its_own():
    cell, start, x = contracting(), numbers(4), numbers((3, 4), 2)
    for dtype in (torch.float32, WIDE):
        cell, z, x = cell.to(dtype), start.to(dtype).expand(3, 4), x.to(dtype)
        check_same(every_analysis(cell, z, x), every_analysis(cell, z.clone(), x))
        f = StateMap(cell, z, x)
        point = start.double().expand(3, 4)
        torch.testing.assert_close(f.push(point, point)[1][0], f.push(point.clone(), point.clone())[1][0])
        with f.linearised(point) as pull:
            assert pull(point).shape == (3, 4)


def test_a_map_keeps_a_state_of_its_own():
    z = torch.ones(2, 4, dtype=WIDE)
    f = StateMap(Stationary(lambda z, x: z.mul_(2)), z, None)  # which writes into its state
    point = f.point.clone()
    for image in (f(point), f.push(point, point)[0]):
        assert (image == 2).all() and (point == 1).all()
    with f.linearised(point) as pull:
        assert (pull(point) == 2).all()
    z.zero_()
    assert (f.point == 1).all()


class Memory(nn.Module):
    def forward(self, state, inputs, step):
        h = torch.tanh(state["memory"].sum(1) + inputs)
        return {"h": h, "memory": torch.cat([state["memory"], h.unsqueeze(1)], 1)}


class Widening(nn.Module):
    def forward(self, state, inputs, step):
        return {"h": state["h"] + inputs, "memory": torch.nn.functional.pad(state["memory"], (0, 0, 0, 1))}


@pytest.mark.parametrize("kind", [Memory, Widening])
def test_a_state_that_grows_is_refused_with_its_leaf_and_what_to_do(kind):
    state, x, cell = {"h": torch.zeros(3, 4), "memory": torch.zeros(3, 2, 4)}, numbers((3, 4)), kind()
    f = StateMap(cell, state, x)

    def recorded():
        with Recorder().attach(cell, CellSite("")):
            BPTT()(cell, state, x, 6)

    for analyse in (
        lambda: record(cell, state, x, 6),
        recorded,
        lambda: f(f.point),
        lambda: spectral_radius(f, f.point),
        lambda: lyapunov(f, f.point, 20),
        lambda: find_fixed_points(f, f.point),
    ):
        with pytest.raises(ValueError, match=r"state's leaf memory from \(3, 2, 4\) to \(3, 3, 4\).*from the start"):
            analyse()


def test_a_state_of_batch_one_for_a_batch_of_inputs_is_refused_with_what_to_do():
    cell, z, x = contracting(), torch.zeros(1, 4), numbers((3, 4))
    f = StateMap(cell, z, x)
    for analyse in (lambda: record(cell, z, x, 6), lambda: f(f.point), lambda: spectral_radius(f, f.point)):
        with pytest.raises(ValueError, match=r"state has batch 1 and inputs have 3.*state.expand\(3, ...\)"):
            analyse()


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_tables_are_as_good_as_dense_ones(kind):
    class Cell(nn.Module):
        def __init__(self, sparse):
            super().__init__()
            torch.manual_seed(0)
            self.table, self.linear = kind(10, 4, sparse=sparse), nn.Linear(4, 4)

        def forward(self, state, inputs, step):
            tokens = inputs[:, step % 6]
            x = self.table(tokens[:, None] if kind is nn.EmbeddingBag else tokens)
            return torch.tanh(self.linear(state) / 2 + x)

    z, tokens = numbers((3, 4)), torch.arange(18).view(3, 6) % 10
    sparse, dense = Cell(True), Cell(False)
    check_same(every_analysis(sparse, z, tokens), every_analysis(dense, z, tokens))

    def loss(own, estimator=None, rows=None):
        start = cast(z, next(own.parameters()).dtype)
        return (estimator or BPTT())(own, start, tokens, 6).state.square().sum()

    found, expected = reference_gradients(loss, sparse), reference_gradients(loss, dense)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name].to_dense(), gradient)
    (gap,) = gradient_gaps({"bptt": BPTT()}, loss, sparse, sparse, z, tokens, 6)
    assert gap.relative_error < 1e-5
    assert bias_and_variance(BPTT(), loss, sparse, draws=4).variance == 0.0


def numpy_cell(detach):
    def update(z, x):
        return torch.from_numpy(np.tanh((z.detach() if detach else z).numpy() / 2 + x.numpy()))

    return Stationary(update)


@pytest.mark.parametrize(
    "cell",
    [numpy_cell(True), numpy_cell(False), Stationary(lambda z, x: torch.tanh(z.data / 2 + x))],
    ids=["detached numpy", "numpy", "data"],
)
def test_a_cell_outside_torch_is_recorded_and_has_no_jacobian(cell):
    z, x = numbers((3, 4)), numbers((3, 4), 2)
    inside = Stationary(lambda z, x: torch.tanh(z / 2 + x))
    np.testing.assert_allclose(record(cell, z, x, 8).joint, record(inside, z, x, 8).joint, rtol=1e-4)
    f = StateMap(cell, z, x)
    assert multistart(f, torch.stack([f.point, -f.point]), 60).clusters.tolist() == [1, 1, 1]
    for analyse in (
        lambda: spectral_radius(f, f.point),
        lambda: operator_norm(f, f.point),
        lambda: lyapunov(f, f.point, 20),
        lambda: find_fixed_points(f, f.point),
    ):
        with pytest.raises(TypeError, match="the cell computes outside torch .*write it with torch operators"):
            analyse()


@pytest.mark.parametrize("n", [4, 100])
def test_a_map_that_is_constant_or_flat_has_a_jacobian_of_zero(n):
    x = numbers((2, n))
    for cell in (Stationary(lambda z, x: x), Stationary(lambda z, x: (z > 0).to(z) + x)):
        f = StateMap(cell, numbers((2, n), 3), x)
        assert not spectral_radius(f, f.point).any() and not f.push(f.point, f.point)[1][0].any()
