"""Random truncation: its mean over all lengths is BPTT to rounding, its values are BPTT's, its draws are its own."""

import copy
import math
import pickle

import pytest
import torch
from cells import CELLS, build
from depth_chances import chance
from problems import leaves_of, loop, loss_of

from loopgrad.analysis.bias_variance import bias_and_variance
from loopgrad.gradients import BPTT, Stationary, TruncatedBPTT
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.depth_distribution import DEPTH_FAMILIES, DepthDistribution
from loopgrad.gradients.random_truncation import RandomTruncation

every_distribution = pytest.mark.parametrize("distribution", DEPTH_FAMILIES)


def drawn(monkeypatch, k):
    monkeypatch.setattr(DepthDistribution, "sample", lambda self, generator: k)


def gradients(state, problem):
    sources = problem.sources()
    found = torch.autograd.grad(loss_of(state), list(sources.values()), allow_unused=True)
    return dict(zip(sources, found, strict=True))


def filled(found, problem):
    return {n: torch.zeros_like(t) if found[n] is None else found[n] for n, t in problem.sources().items()}


@pytest.mark.one_in(3)
@every_distribution
@pytest.mark.parametrize("unit", ["mean_steps", "mean_cycles"])
@pytest.mark.parametrize("name", ["affine", "two_streams", "recurrent", "twice", "dataclass_state", "closure"])
@pytest.mark.parametrize("num_steps", [1, 6, 8])
def test_the_mean_over_all_lengths_is_the_exact_gradient(num_steps, name, unit, distribution, monkeypatch):
    problem = build(name)
    exact = filled(gradients(loop(problem, num_steps), problem), problem)
    estimator = RandomTruncation(**{unit: 2.5}, distribution=distribution)
    size = period_of(problem.cell) if unit == "mean_cycles" else 1
    longest = -(-num_steps // size)
    mean, left = dict.fromkeys(exact, 0), 1.0
    for k in range(1, longest + 1):
        drawn(monkeypatch, k)
        p = chance(2.5, distribution, k) if k < longest else left
        left -= p
        rollout = estimator(problem.cell, problem.state, problem.inputs, num_steps)
        assert (rollout.stats.cell_evaluations, rollout.stats.vjps) == (num_steps, min(k * size, num_steps))
        for source, gradient in gradients(rollout.state, problem).items():
            assert gradient is not None, source
            mean[source] = mean[source] + p * gradient
    for source, gradient in exact.items():
        torch.testing.assert_close(mean[source], gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [6, 7, 50])
def test_lengths_beyond_the_recursion_weigh_as_the_whole(k, monkeypatch):
    problem, estimator = build("affine"), RandomTruncation(mean_steps=2)
    found = []
    for length in (k, 6):
        drawn(monkeypatch, length)
        found.append(gradients(estimator(problem.cell, problem.state, problem.inputs, 6).state, problem))
    assert all(torch.equal(found[0][source], found[1][source]) for source in found[0])
    exact = gradients(loop(problem, 6), problem)["state 0"]
    torch.testing.assert_close(found[0]["state 0"], 2**5 * exact)  # P(k >= 6) = 2^-5


@pytest.mark.parametrize("k", [1, 3, 6, 9])
@pytest.mark.parametrize("name", ["affine", "two_streams", "recurrent", "twice", "dataclass_state"])
def test_without_weights_it_is_truncation_of_the_drawn_length(name, k, monkeypatch):
    problem = build(name)
    drawn(monkeypatch, k)
    estimator = RandomTruncation(mean_steps=3, reweight=False)
    got = gradients(estimator(problem.cell, problem.state, problem.inputs, 6).state, problem)
    witness = TruncatedBPTT(num_steps=k)(problem.cell, problem.state, problem.inputs, 6).state
    expected = filled(gradients(witness, problem), problem)
    rounding = 1e-14 if name == "twice" else 0  # there the cotangents of one tensor are summed in another order
    for source, gradient in expected.items():
        torch.testing.assert_close(got[source], gradient, rtol=rounding, atol=rounding)


def test_kind_says_whether_there_are_weights():
    assert RandomTruncation(mean_steps=2).kind == "unbiased"
    biased = RandomTruncation(mean_steps=2, reweight=False)
    assert (biased.kind, copy.deepcopy(biased).kind) == ("biased", "biased")


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_those_of_bptt(name, dtype):
    states = []
    for estimator in (BPTT(), RandomTruncation(mean_steps=2.5, seed=1)):
        problem = build(name, dtype)
        torch.manual_seed(0)
        states.append(leaves_of(estimator(problem.cell, problem.state, problem.inputs, 7).state))
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_what_is_saved_grows_with_the_length_and_not_with_the_recursion(monkeypatch):
    def saved(k, num_steps):
        drawn(monkeypatch, k)
        kept, problem = [], build("affine")
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes), lambda t: t):
            RandomTruncation(mean_steps=2)(problem.cell, problem.state, problem.inputs, num_steps)
        return sum(kept)

    assert saved(3, 10) == saved(3, 100)
    assert saved(9, 10) - saved(6, 10) == saved(6, 10) - saved(3, 10) > 0


@pytest.mark.parametrize("k", [1, 4])
def test_the_last_state_may_be_changed_in_place(k, monkeypatch):
    problem = build("affine")
    drawn(monkeypatch, k)
    state = RandomTruncation(mean_steps=2)(problem.cell, problem.state, problem.inputs, 4).state
    before = gradients(state, problem)["inputs 0"]
    state = RandomTruncation(mean_steps=2)(problem.cell, problem.state, problem.inputs, 4).state
    state += 0
    assert torch.equal(gradients(state, problem)["inputs 0"], before)


def test_its_gradient_can_be_differentiated(monkeypatch):
    drawn(monkeypatch, 3)
    w = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    cell = Stationary(lambda z, x: w * z + x, parameters=[w])
    one = torch.ones(1, 1, dtype=torch.float64)
    state = RandomTruncation(mean_steps=2)(cell, one, one, 3).state  # 1 + w + w^2 + w^3
    first = torch.autograd.grad(state.sum(), w, create_graph=True)[0]
    # z_2 + 2 w z_1 + 4 w^2 z_0, through z_1 = w + 1 and z_2 = w z_1 + 1 with weight 2 again at each boundary
    assert first.item() == 1.75 + 2 * 0.5 * 1.5 + 4 * 0.25
    assert torch.isfinite(torch.autograd.grad(first.sum(), w)[0])


def lengths(estimator, calls=12):
    problem = build("affine")
    return [estimator(problem.cell, problem.state, problem.inputs, 64).stats.vjps for _ in range(calls)]


def test_a_seed_repeats_the_draws_and_calls_differ():
    first = lengths(RandomTruncation(mean_steps=8, seed=5))
    assert first == lengths(RandomTruncation(mean_steps=8, seed=5)) != lengths(RandomTruncation(mean_steps=8, seed=6))
    assert len(set(first)) > 4
    assert lengths(RandomTruncation(mean_steps=8)) != lengths(RandomTruncation(mean_steps=8))


def test_copies_go_on_where_the_estimator_stood():
    estimator = RandomTruncation(mean_steps=8, seed=5)
    lengths(estimator)
    copies = [copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))]
    assert estimator == copies[0] == copies[1]
    expected = lengths(estimator)
    assert [lengths(one) for one in copies] == [expected, expected]


def test_ranks_draw_one_length_for_the_whole_batch(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    found = []
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        found.append(lengths(RandomTruncation(mean_steps=8, seed=5)))
    assert found[0] == found[1]


@every_distribution
def test_the_global_generator_is_left_alone(distribution):
    problem = build("affine")
    before = torch.get_rng_state()
    estimator = RandomTruncation(mean_steps=3, distribution=distribution)
    estimator(problem.cell, problem.state, problem.inputs, 6)
    assert torch.equal(before, torch.get_rng_state())


def test_no_draw_is_made_without_autograd():
    problem, estimator = build("affine"), RandomTruncation(mean_steps=8, seed=5)
    with torch.no_grad():
        rollout = estimator(problem.cell, problem.state, problem.inputs, 6)
    assert rollout.stats.vjps == 0 and not rollout.state.requires_grad
    assert torch.equal(rollout.state, loop(problem, 6))
    assert lengths(estimator) == lengths(RandomTruncation(mean_steps=8, seed=5))


def test_nothing_to_differentiate_and_nothing_to_run():
    cell, z = Stationary(lambda z, x: torch.cos(z)), torch.ones(2, 1)
    rollout = RandomTruncation(mean_steps=2)(cell, z, None, 5)
    assert not rollout.state.requires_grad and rollout.stats.vjps == 0
    problem = build("affine")
    assert RandomTruncation(mean_steps=2)(problem.cell, problem.state, problem.inputs, 0).state is problem.state


@pytest.mark.slow
@every_distribution
@pytest.mark.parametrize("reweight", [True, False])
def test_many_draws_show_no_bias_with_weights_and_one_without(distribution, reweight):
    problem = build("affine")
    estimator = RandomTruncation(mean_steps=3, distribution=distribution, reweight=reweight, seed=0)

    def loss(module, estimator):
        dtype = next(module.parameters()).dtype
        state, inputs = problem.state.detach().to(dtype), problem.inputs.detach().to(dtype)
        return loss_of(estimator(module, state, inputs, 6).state)

    found = bias_and_variance(estimator, loss, problem.cell, draws=400)
    assert found.variance > 0
    assert abs(found.z) < 4 if reweight else found.z > 10


def test_the_second_moment_is_that_of_the_docstring(monkeypatch):
    problem, estimator, num_steps = build("affine"), RandomTruncation(mean_steps=2.5), 6
    b = problem.cell.B
    tails = [torch.autograd.grad(loss_of(loop(problem, num_steps)), b)[0]]
    for d in range(1, num_steps + 1):  # G_d: the whole less what the last d updates add
        kept = torch.autograd.grad(loss_of(loop(problem, num_steps, d)), b)[0]
        tails.append(tails[0] - kept)
    squares = [float(t.square().sum()) for t in tails]
    expected = sum((squares[d] - squares[d + 1]) / (1 - 1 / 2.5) ** d for d in range(num_steps))
    found, left = 0.0, 1.0
    for k in range(1, num_steps + 1):
        drawn(monkeypatch, k)
        p = chance(2.5, "geometric", k) if k < num_steps else left
        left -= p
        state = estimator(problem.cell, problem.state, problem.inputs, num_steps).state
        found += p * float(torch.autograd.grad(loss_of(state), b)[0].square().sum())
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "one of mean_steps and mean_cycles, got none"),
        ({"mean_steps": 2, "mean_cycles": 2}, ValueError, "one of mean_steps and mean_cycles"),
        ({"mean_steps": 0.5}, ValueError, r"mean_steps=0.5\) must be finite and at least 1"),
        ({"mean_cycles": math.inf}, ValueError, "mean_cycles=inf"),
        ({"mean_cycles": math.nan}, ValueError, "mean_cycles=nan"),
        ({"mean_cycles": 1}, ValueError, "a mean above 1, or reweight=False"),
        ({"mean_steps": True}, TypeError, "mean_steps=.*must be a number, got True"),
        ({"mean_steps": "4"}, TypeError, "mean_steps=.*must be a number, got '4'"),
        ({"mean_steps": 2, "sigma": -1}, ValueError, "sigma=-1"),
        ({"mean_steps": 2, "sigma": "0.5"}, TypeError, "sigma"),
        ({"mean_steps": 2, "reweight": 1}, TypeError, "reweight"),
        ({"mean_steps": 2, "seed": -1}, ValueError, "seed"),
        (
            {"mean_steps": 2, "distribution": "lognorml"},
            ValueError,
            "geometric, poisson, lognormal; nearest: lognormal",
        ),
        ({"mean_steps": 2, "distribution": None}, ValueError, "distribution=None"),
    ],
)
def test_wrong_choices_are_refused(arguments, error, message):
    with pytest.raises(error, match=message) as raised:
        RandomTruncation(**arguments)
    assert str(raised.value).startswith("RandomTruncation")
