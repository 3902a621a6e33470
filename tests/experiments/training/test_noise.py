"""The noise of estimators: it follows from the run's seed alone, and not from how a command is carried out."""

from dataclasses import replace

import pytest
import torch
from small_runs import TASK, model, trainer

from loopgrad.experiments import records
from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.conf.parts import parts
from loopgrad.experiments.training import probe
from loopgrad.experiments.training.runs import plans
from loopgrad.experiments.training.seeds import generators, seed_for, seeded
from loopgrad.gradients import BPTT, ForwardGradient, ImplicitGradient, RandomTruncation, TruncatedBPTT

RANDOM = ("forward_state", "forward_weights", "zeroth_order", "random_truncation")
every_random = pytest.mark.parametrize("name", RANDOM)


def planned(folder, *overrides):
    return plans(parts(composed("compare", [*overrides, "seeds=[0,1,2]"])), [0, 1, 2], folder)


@pytest.mark.one_in(2)
@every_random
def test_every_seed_of_a_comparison_has_noise_of_its_own_that_its_record_repeats(name, tiny, tmp_path):
    found = planned(tmp_path, *tiny, f"estimator=[bptt,{name}]")
    noisy = [plan for plan in found if generators(plan.estimator)]
    assert [plan.estimator.seed for plan in noisy] == [seed_for("estimator", seed) for seed in (0, 1, 2)]
    assert len({plan.estimator.generator.get_state().numpy().tobytes() for plan in noisy}) == 3
    for plan in noisy:
        assert (plan.fingerprint["estimator"]["seed"], plan.fingerprint["seed"]) == (None, plan.seed)
    assert [plan.estimator for plan in found if plan not in noisy] == [BPTT()] * 3


def test_a_seed_that_is_given_stays_and_its_runs_do_not_share_a_generator(tiny, tmp_path):
    found = planned(tmp_path, *tiny, "estimator=random_truncation", "estimator.random_truncation.seed=7")
    assert [plan.estimator.seed for plan in found] == [7, 7, 7]
    assert len({id(plan.estimator.generator) for plan in found}) == 3


def test_an_estimator_is_seeded_where_it_stands_and_otherwise_left_as_it_is():
    inner = RandomTruncation(mean_steps=3)
    outer = seeded(ImplicitGradient(rtol=0.5, fallback=inner), 4)
    assert outer == ImplicitGradient(rtol=0.5, fallback=replace(inner, seed=seed_for("estimator", 4)))
    assert generators(outer) == [outer.fallback.generator]
    for plain in (BPTT(), ImplicitGradient(), ForwardGradient(seed=0), ImplicitGradient(fallback=TruncatedBPTT(1))):
        assert seeded(plain, 4) is plain


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n.startswith(("forward_", "zeroth")) else n for n in RANDOM]
)
def test_probes_find_the_same_whatever_was_drawn_before_and_draw_nothing(name):
    it, frozen = trainer(), model().eval()
    test = probe.start(frozen, it, TASK.test_set())
    fewer = [] if name == "random_truncation" else [f"estimator.{name}.num_tangents=2"]
    config = composed("train", [f"estimator={name}", *fewer])
    estimator = seeded(parts(config).estimators[name], 0)
    before = estimator.generator.get_state()
    first = probe.cost(test, estimator), probe.agreement(test, estimator)
    probe.times(test, {name: estimator}, 2)
    probe.residuals(test, estimator)
    assert (probe.cost(test, estimator), probe.agreement(test, estimator)) == first
    assert torch.equal(estimator.generator.get_state(), before)


@pytest.mark.slow
def test_the_counts_of_a_probe_are_of_one_draw():
    """The three passes under counters give what they give at the k of the first."""
    test = probe.start(model().eval(), trainer(), TASK.test_set())
    for seed in range(6):
        cost = probe.cost(test, RandomTruncation(mean_steps=2, seed=seed))
        fixed = probe.cost(test, TruncatedBPTT(num_steps=cost["vjps"]))
        assert cost["flops"] == fixed["flops"]


@pytest.mark.slow
def test_a_comparison_is_the_same_with_any_number_of_workers(loopgrad, tiny, tmp_path):
    found = []
    for workers in (1, 2):
        arguments = [*tiny, "estimator=[random_truncation,forward_state]", "seeds=[0,1]", f"workers={workers}"]
        assert loopgrad("compare", *arguments, "timing_repeats=1", f"output_dir={workers}").code == 0
        rows = records.read(tmp_path / str(workers) / "records.jsonl")
        names = ("estimator", "seed", "loss", "curve", "saved_bytes", "vjps", "gradient_cosine")
        found.append([{name: row[name] for name in names} for row in rows])
    assert found[0] == found[1]
