"""The recipes of claims: each is whole, cites what it quotes, and every condition of every size can be trained."""

import re
from importlib.resources import files

import pytest
from omegaconf import OmegaConf
from repository import ROOT, blocks

from loopgrad.experiments.claims import SIZES, Claim
from loopgrad.experiments.conf.build import build
from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.conf.parts import estimators_of
from loopgrad.experiments.conf.values import run_seeds
from loopgrad.experiments.records.claimed import Overrides, Text
from loopgrad.experiments.records.kinds import Name
from loopgrad.experiments.records.schema import check

FOLDER = files("loopgrad.experiments.conf") / "claim"
RECIPES = {it.name.removesuffix(".yaml"): it.read_text() for it in FOLDER.iterdir() if it.name.endswith(".yaml")}
CITED = set(re.findall(r"^@\w+\{([\w-]+),", (files("loopgrad") / "references.bib").read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def claims() -> dict[str, Claim]:
    return {name: build(OmegaConf.create(text), name) for name, text in RECIPES.items()}


def test_there_are_recipes_and_the_defaults_test_them_with_enough_seeds(claims):
    assert len(claims) >= 6
    config = composed("claims", [])
    assert "claim" not in config and config.size == "cpu" and len(run_seeds(config.seeds)) == 3


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_whole_and_fits_into_a_record(claims, name):
    claim = claims[name]
    for text in (claim.title, claim.statement, claim.published, claim.change):
        check(text, Text)
        assert text == " ".join(text.split())
    assert claim.sources and set(claim.sources) <= CITED
    # sentences that end, and words that go on after "the claim says that"
    assert claim.statement.endswith((".", ").")) and claim.published[-1] == claim.change[-1] == "."
    assert not claim.equal.endswith(".") and not claim.title.endswith(".")
    for key, found in claim.differences().items():
        check(key, Name)
        assert not found.says.endswith(".") and found.says == " ".join(found.says.split())
    assert RECIPES[name].startswith("# ")
    for size in SIZES:
        for condition in claim.conditions(size):
            check(condition.overrides, Overrides)


@pytest.mark.parametrize("name", RECIPES)
def test_every_condition_of_a_difference_is_another(claims, name):
    for found in claims[name].differences().values():
        assert (found.more, found.at) != (found.less, found.less_at or found.at)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", RECIPES)
def test_the_first_condition_at_tiny_size_composes(claims, name):
    first = claims[name].conditions("tiny")[0]
    assert composed("train", first.overrides).trainer.train_steps <= 20


def test_the_claim_of_the_guide_is_one():
    ((_, code),) = blocks((ROOT / "docs/guides/claims.md").read_text(), "yaml")
    claim = build(OmegaConf.create(code), "claim")
    assert isinstance(claim, Claim) and claim.differences()["wide"].at == "segments@4"
    for condition in claim.conditions("cpu"):
        composed("train", condition.overrides)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", RECIPES)
def test_every_condition_composes_with_one_estimator(claims, name, size):
    for condition in claims[name].conditions(size):
        config = composed("train", condition.overrides)
        assert len(estimators_of(config)) == 1, condition.name
        halting = build(config.trainer, "trainer").halting
        lengths = claims[name].readings(size).lengths
        assert halting.max_segments >= 1 and (not lengths or "length" in config.task)
