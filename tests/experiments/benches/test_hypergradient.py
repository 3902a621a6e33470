"""Hypergradients beside higher, a plain unroll, finite differences and closed forms; their memory; the bench."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call, jvp, vmap

from loopgrad.analysis import measure
from loopgrad.experiments import records
from loopgrad.experiments.benches.hypergradient import Hypergradient, measured
from loopgrad.experiments.benches.inner_training import HYPERPARAMETERS, mlp, reference, ridge
from loopgrad.gradients import BPTT, CheckpointedBPTT, ImplicitGradient, ReversibleBPTT, Stationary, TruncatedBPTT
from loopgrad.gradients.forward_mode import ForwardMode
from loopgrad.models import Damped, Momentum

FORWARD = ForwardMode(parameters=list(HYPERPARAMETERS))
EXACT = [BPTT(), CheckpointedBPTT(), FORWARD]
SOLVE = {"scope": "batch", "rtol": 1e-12, "max_vjps": 100}

problems = pytest.mark.parametrize("make", [ridge, mlp])
lengths = pytest.mark.parametrize("length", [20, pytest.param(300, marks=pytest.mark.slow)])


def apart(got, exact):
    return float((got - exact).norm() / exact.norm())


def unrolled(problem, length):
    """The validation loss by hand, without the cell and without functional calls on a module."""
    (x, y), (x_val, y_val) = problem.train, problem.validation
    lr, decay = problem.cell.log_lr.exp(), problem.cell.log_weight_decay.exp()

    def loss(weights, x, y):
        if len(weights) == 4:
            x = torch.tanh(x @ weights[0].T + weights[1])
        output = x @ weights[-2].T + weights[-1] if len(weights) == 4 else x @ weights[0].T
        return ((output - y) ** 2).sum(1).mean() / 2

    weights = [w.clone().requires_grad_() for w in problem.state.values()]
    for step in range(length):
        size = len(x) // problem.cell.period
        rows = [i % len(x) for i in range(step * size, (step + 1) * size)]
        slopes = torch.autograd.grad(loss(weights, x[rows], y[rows]), weights, create_graph=True)
        weights = [w - lr * (slope + decay * w) for w, slope in zip(weights, slopes, strict=True)]
    return loss(weights, x_val, y_val)


@problems
@lengths
@pytest.mark.parametrize("num_batches", [1, 4])
@pytest.mark.parametrize("other", ["unrolled", "higher"])
def test_exact_estimators_are_the_plain_unroll_and_what_higher_computes(make, length, num_batches, other):
    problem = make(num_batches=num_batches)
    if other == "higher":
        pytest.importorskip("higher")
        exact = problem.hypergradient(problem.outer_loss(reference(problem, length)))
    else:
        exact = problem.hypergradient(unrolled(problem, length))
    for estimator in EXACT:
        assert apart(problem.hypergradient(problem.loss(estimator, length)), exact) < 1e-10, estimator


def change(cell):
    """What an update changes, a residual branch."""
    return Stationary(lambda w, data: {name: new - w[name] for name, new in cell(w, data, 0).items()}, cell)


@problems
@lengths
@pytest.mark.parametrize("couple", [Damped, lambda cell: Momentum(change(cell), gamma="1/2")])
def test_a_coupled_training_is_undone_to_the_bit(make, length, couple):
    problem = make()
    cell = couple(problem.cell)
    exact = problem.hypergradient(problem.loss(BPTT(), length, cell))
    assert exact.isfinite().all()
    assert torch.equal(problem.hypergradient(problem.loss(ReversibleBPTT(), length, cell)), exact)


@problems
@pytest.mark.parametrize("estimator", [BPTT(), FORWARD])
def test_hypergradients_are_central_differences(make, estimator):
    problem, step = make(), 1e-5
    found = problem.hypergradient(problem.loss(estimator, 20))
    for parameter, derivative in zip(problem.hyperparameters, found, strict=True):
        values = []
        for sign in (1, -2):
            with torch.no_grad():
                parameter += sign * step
                values.append(problem.loss(BPTT(), 20).item())
        parameter.data += step
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(derivative.item(), rel=1e-6)


def test_at_the_solution_of_ridge_regression_the_implicit_gradient_is_the_closed_form():
    problem = ridge()
    (x, y), (x_val, y_val) = problem.train, problem.validation
    decay = problem.cell.log_weight_decay.detach().exp()
    curvature = x.T @ x / len(x) + decay * torch.eye(x.shape[1], dtype=x.dtype)
    w = torch.linalg.solve(curvature, x.T @ y / len(x))
    slope = x_val.T @ (x_val @ w - y_val) / len(x_val)
    exact = torch.stack([torch.zeros_like(decay), -decay * (slope * torch.linalg.solve(curvature, w)).sum()])
    for how in ("fallback", "ignore"):
        estimator = ImplicitGradient("gmres", on_unconverged=how, **SOLVE)
        weights = estimator(problem.cell, problem.state, problem.train, 300).state
        assert torch.allclose(weights["weight"].T, w, rtol=0, atol=1e-14)
        assert apart(problem.hypergradient(problem.outer_loss(weights)), exact) < 1e-12
    assert apart(problem.hypergradient(problem.loss(BPTT(), 300)), exact) < 1e-12
    # no rate moves a solution: the first of the two is nothing but the distance from it
    assert apart(problem.hypergradient(problem.loss(ImplicitGradient("gmres", **SOLVE), 20)), exact) > 1e-3


@lengths
def test_training_a_network_has_not_converged_and_the_gate_says_so(length):
    problem = mlp()
    raw = ImplicitGradient("gmres", on_unconverged="ignore", **SOLVE)
    gated = ImplicitGradient("gmres", fallback=TruncatedBPTT(1), **SOLVE)
    estimators = (BPTT(), *map(TruncatedBPTT, (1, 5)), gated, raw)
    exact, one, five, gated, raw = [problem.hypergradient(problem.loss(e, length)) for e in estimators]
    assert apart(gated, one) < 1e-12 and 0.5 < apart(five, exact) < apart(one, exact) < 1 < apart(raw, exact)


@pytest.mark.slow
@problems
def test_what_forward_mode_keeps_does_not_grow_and_what_bptt_keeps_does(make):
    problem = make()
    exclude = [problem.cell, problem.state, problem.train, problem.validation]

    def saved(estimator, length):
        return measure(lambda: problem.loss(estimator, length), exclude=exclude, repeats=0, warmup=0)

    short, long = saved(FORWARD, 4), saved(FORWARD, 64)
    assert short.saved_bytes == long.saved_bytes and short.peak_bytes == long.peak_bytes
    assert saved(BPTT(), 64).saved_bytes > 10 * saved(BPTT(), 4).saved_bytes


@problems
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch 2.13's own, at its first jvp
def test_an_update_has_the_same_derivatives_under_every_kind_of_differentiation(make):
    problem = make()
    given = [h.detach() for h in problem.hyperparameters]

    def update(*values):
        swapped = dict(zip(HYPERPARAMETERS, values, strict=True))
        return functional_call(problem.cell, swapped, (problem.state, problem.train, 0))

    units = torch.eye(2, dtype=torch.float64).unbind(1)
    pushed = vmap(lambda *t: jvp(update, tuple(given), t)[1])(*units)
    with torch.no_grad():
        bare = problem.cell(problem.state, problem.train, 0)
        assert not any(image.requires_grad for image in bare.values())
    for name, image in problem.cell(problem.state, problem.train, 0).items():
        assert torch.equal(image, bare[name])
        for i, h in enumerate(problem.hyperparameters):
            (pulled,) = torch.autograd.grad((image * problem.state[name]).sum(), h, retain_graph=True)
            assert torch.allclose((pushed[name][i] * problem.state[name]).sum(), pulled, rtol=1e-12)


def test_data_get_gradients_too():
    problem = ridge(features=2, samples=4)
    x = problem.train[0].clone().requires_grad_()
    problem = replace(problem, train=(x, problem.train[1]))
    (exact,) = torch.autograd.grad(unrolled(problem, 3), x)
    for estimator in (BPTT(), CheckpointedBPTT()):
        assert apart(torch.autograd.grad(problem.loss(estimator, 3), x)[0], exact) < 1e-12


@pytest.mark.parametrize("estimator", [BPTT(), FORWARD])
def test_descent_in_the_hyperparameters_lowers_the_validation_loss(estimator):
    problem, losses = mlp(), []
    optimizer = torch.optim.SGD(problem.hyperparameters, lr=5.0)
    for _ in range(6):
        optimizer.zero_grad()
        losses.append(problem.loss(estimator, 20))
        losses[-1].backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


@pytest.mark.slow
def test_without_higher_the_reference_says_what_to_install_and_its_row_that_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "higher", None)
    with pytest.raises(ImportError, match=r"pip install 'loopgrad\[peers\]'"):
        reference(ridge(), 1)
    rows = measured(ridge(2, 4), length=2, repeats=1)
    assert [name for name, row in rows.items() if math.isnan(row["error"])] == ["higher, not installed"]


@pytest.mark.slow
def test_the_command_at_a_tiny_size(loopgrad, tmp_path):
    sizes = ("bench.hidden_size=4", "bench.samples=8", "bench.lengths=[4]", "bench.repeats=1")
    result = loopgrad("bench", "hypergradient", *sizes, "output_dir=out")
    assert result.code == 0 and "forward mode" in result.out
    (record,) = records.read(tmp_path / "out" / "hypergradient.json")
    assert len(record["rows"]) == 2 * 11
    for row in record["rows"]:
        name = row["estimator"]
        if name in ("BPTT", "checkpointed", "forward mode", "higher", "damped, BPTT", "damped, reversible"):
            assert row["error"] < 1e-10, row
        assert (row["trusted"] == "-") != ("gated" in name)
    with pytest.raises(ValueError, match=r"lengths=\(0,\) must be at least 1"):
        Hypergradient(lengths=(0,)).rows()
