"""Weights that processes share, beside one process that has all of them and the whole batch, in float64."""

import pytest
import torch
from ranks_witness import ALONE, SHAREABLE, assert_same, in_processes, settings, tolerance_of, trained
from shards_witness import COMPILED, RULES, bytes_of, compiled, few_steps, gone_on_alone, others, quick, with_rule, work
from two_processes import in_two

OTHERS = tuple(others())


def test_two_processes_that_share_the_weights_are_one():
    expected = trained(settings("explored", train_steps=2), ALONE)
    for found in in_two(quick, seconds=60):
        assert_same(found, expected, tolerance_of("explored"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def two(folder):
    return in_processes(2, work, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAREABLE)
def test_sharing_the_weights_changes_no_training(two, name):
    expected = trained(settings(name), ALONE)
    for found in two:
        assert_same(found[name], expected, tolerance_of(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_rules_are_those_of_whole_weights(two, name):
    expected = with_rule(name, ALONE)
    for found in two:
        assert_same(found["rules"][name], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_models_too(two, name):
    _, expected = few_steps(name, ALONE)
    for found in two:
        assert len(found["others"][name]) == len(expected)
        for entry, its in zip(found["others"][name], expected, strict=True):
            assert entry.keys() == its.keys()
            for key in entry.keys() - {"saved_bytes"}:
                assert entry[key] == pytest.approx(its[key], rel=1e-6, abs=1e-7), key


@pytest.mark.slow
def test_what_is_compiled_shares_its_weights_too():
    expected = trained(settings("fixed", **COMPILED), ALONE)
    for found in in_two(compiled, ("net", "cell"), seconds=240):
        for place in ("net", "cell"):
            assert_same(found[place], expected)


@pytest.mark.slow
def test_each_process_holds_half(two):
    run, _ = few_steps("hrm", ALONE)
    for name, whole in bytes_of(run).items():
        held = [found["bytes"][name] for found in two]
        assert sum(held) == pytest.approx(whole, rel=0.01) and max(held) < 0.51 * whole, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["begun", "gone on"])
def test_a_run_goes_on_shared_or_not(two, folder, name):
    expected = trained(settings("explored"), ALONE)
    for found in [*two, {name: gone_on_alone(folder / f"{name}.pt")}]:
        ours = {**found[name], "log": [*expected["log"][:2], *found[name]["log"]]}
        assert_same(ours, expected, tolerance_of("explored"))


@pytest.mark.slow
def test_a_checkpoint_of_shared_weights_is_that_of_one_process(two, folder):
    stored = {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in ("begun", "gone on")}
    assert stored["begun"].keys() == stored["gone on"].keys()
    for part in ("model", "average"):
        for name, value in stored["begun"][part].items():
            assert type(value) is torch.Tensor and torch.allclose(value, stored["gone on"][part][name]), name


@pytest.mark.slow
def test_weights_that_are_not_finite_on_one_process_are_told_alike_by_all(two):
    (said,) = {found["poisoned"] for found in two}
    assert said == "step 1: parameter lm_head.weight is not finite; the weights of step 0 are kept"


@pytest.mark.slow
def test_an_overflow_on_one_process_skips_the_step_of_all(two):
    assert [found["overflow"] for found in two] == [{"told": True, "done": False, "same": True}] * 2
