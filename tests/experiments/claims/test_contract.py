"""What a claim must say: every part that is missing or wrong is refused by its name."""

import copy
from typing import Any

import pytest
from omegaconf import OmegaConf

from loopgrad.experiments.claims import SIZES, Claim, Condition, Contrast, Readings
from loopgrad.experiments.conf.build import build
from loopgrad.experiments.errors import ConfigError

SIZE = {
    "every": ["trainer.train_steps=3"],
    "conditions": {"deep": ["model.H_cycles=2"], "shallow": []},
    "readings": {"segments": [1, 4], "settles": [2], "halting": True},
}
GIVEN: dict[str, Any] = {
    "_target_": "loopgrad.experiments.claims.Claim",
    "title": "Depth",
    "statement": "Deep is better.",
    "sources": ["graves2016adaptive"],
    "published": "Nothing.",
    "change": "Anything.",
    "sizes": {size: SIZE for size in SIZES},
    "contrasts": {"more": {"says": "deep solves more", "more": "deep", "less": "shallow"}},
}


def changed(path: str, value: Any, drop: bool = False) -> dict[str, Any]:
    """The claim with another value at a place; a size is changed alone."""
    found = copy.deepcopy(GIVEN)
    *outer, last = path.split("/")
    place = found
    for key in outer:
        place[key] = copy.deepcopy(place[key])
        place = place[key]
    if drop:
        del place[last]
    else:
        place[last] = value
    return found


def made(given: dict[str, Any]) -> Claim:
    found = build(OmegaConf.create(given), "claim")
    assert isinstance(found, Claim)
    return found


def test_a_claim_gives_what_all_conditions_have_in_front():
    claim = made(GIVEN)
    assert claim.conditions("cpu") == [
        Condition("deep", ["trainer.train_steps=3", "model.H_cycles=2"]),
        Condition("shallow", ["trainer.train_steps=3"]),
    ]
    assert claim.readings("gpu") == Readings(segments=[1, 4], settles=[2], halting=True)
    assert claim.differences() == {"more": Contrast("deep solves more", "deep", "shallow")}
    assert claim.figure == "learning" and claim.equal == ""


def test_what_is_not_said_is_not_there():
    claim = made(changed("sizes/tiny", {"conditions": {"deep": [], "shallow": []}}))
    assert claim.conditions("tiny") == [Condition("deep", []), Condition("shallow", [])]
    assert claim.readings("tiny") == Readings()


def test_readings_are_known_by_name():
    found = Readings(segments=[2], lengths=[8], halting=True, settles=[4], votes=3).names()
    assert found[:4] == ["exact", "tokens", "match", "flops"]
    assert found[4:8] == ["segments@2", "lengths@8", "halted", "halted segments"]
    assert found[8:] == ["solved@4", "unsolved@4", "unsettled@4", "residual@4", "pass@1", "pass@2"]
    assert Readings().names() == found[:4]


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("title", "", "claim: title must be a text of 1 to 4000 characters, and has 0"),
        ("statement", "x" * 4001, "claim: statement must be a text of 1 to 4000 characters, and has 4001"),
        ("published", 5, "claim.published=5: must be str, got int"),
        ("sources", "graves2016adaptive", "claim.sources=graves2016adaptive: must be list[str], got str"),
        ("figure", "segment", "claim: figure=segment: there is no such figure; did you mean segments?"),
        ("figure", "lengths", "claim: figure=lengths: size=tiny has no readings of lengths"),
        ("colour", "red", "claim.colour: loopgrad.experiments.claims.Claim takes no colour"),
        ("sizes/huge", SIZE, "claim: sizes must be tiny, cpu, gpu, got tiny, cpu, gpu, huge"),
        ("sizes", {}, "claim: sizes must be tiny, cpu, gpu, got none"),
        ("sizes/cpu", [], "sizes.cpu must have conditions, and may have every and readings, nothing else"),
        ("sizes/cpu/conditions", {}, "sizes.cpu must have conditions"),
        ("sizes/cpu/steps", 5, "sizes.cpu must have conditions, and may have every and readings, nothing else"),
        ("sizes/cpu/conditions", ["a"], "sizes.cpu.conditions must give overrides by the names of conditions"),
        ("sizes/cpu/conditions/deep", "model=hrm", "sizes.cpu: deep must be a list of overrides, such as"),
        ("sizes/cpu/conditions/deep", [5], "sizes.cpu: deep must be a list of overrides"),
        ("sizes/cpu/every", None, "sizes.cpu: every must be a list of overrides"),
        ("sizes/cpu/conditions/a b", [], "sizes.cpu: a condition cannot be called a b: take letters, digits and _"),
        ("sizes/cpu/conditions/..", [], "sizes.cpu: a condition cannot be called ..: take"),
        ("sizes/cpu/conditions/_x", [], "sizes.cpu: a condition cannot be called _x: take"),
        ("sizes/gpu/readings", [1], "sizes.gpu.readings=[1]: must be a mapping of segments, lengths, halting"),
        ("sizes/gpu/readings/segment", [1], "sizes.gpu.readings: there is no segment; did you mean segments?"),
        ("sizes/gpu/readings/segments", [1.5], "sizes.gpu.readings.segments=[1.5]: must be list[int], got list"),
        ("sizes/gpu/readings/segments", 4, "sizes.gpu.readings.segments=4: must be list[int], got int"),
        ("sizes/gpu/readings/segments", [True], "sizes.gpu.readings.segments=[True]: must be list[int]"),
        ("sizes/gpu/readings/segments", [0], "sizes.gpu.readings: segments=[0] must be numbers of at least 1"),
        ("sizes/gpu/readings/settles", [-1], "sizes.gpu.readings: settles=[-1] must be numbers of at least 1"),
        ("sizes/gpu/readings/halting", 1, "sizes.gpu.readings.halting=1: must be bool, got int"),
        ("sizes/gpu/readings/votes", -1, "sizes.gpu.readings: votes=-1 must be at least 0"),
        ("contrasts", {}, "contrasts is empty: a claim needs a difference that could go either way"),
        (
            "contrasts/more",
            "deep",
            "contrasts.more=deep: must be a mapping of says, more, less, at, less_at, share, by",
        ),
        ("contrasts/more/less", "shalow", "contrasts.more names shalow, and size=tiny has conditions deep, shallow"),
        ("contrasts/more/att", "exact", "contrasts.more: there is no att; did you mean at?"),
        ("contrasts/more/by", "0.1", "contrasts.more.by=0.1: must be float, got str"),
        ("contrasts/more/by", float("nan"), "contrasts.more: by=nan must be a finite number"),
        ("contrasts/more/share", 0, "contrasts.more: share=0 must be a finite number above 0"),
        ("contrasts/more/share", -0.5, "contrasts.more: share=-0.5 must be a finite number above 0"),
        ("contrasts/more/says", "", "contrasts.more: says must be a text of 1 to 4000 characters, and has 0"),
        ("contrasts/more/more", None, "contrasts.more.more=None: must be str, got NoneType"),
        (
            "contrasts/more/at",
            "segments@2",
            "contrasts.more names segments@2, and size=tiny has readings exact, tokens",
        ),
        ("contrasts/more/less_at", "lengths@4", "contrasts.more names lengths@4, and size=tiny has readings"),
    ],
)
def test_what_is_wrong_is_named(path, value, line):
    with pytest.raises(ConfigError) as caught:
        made(changed(path, value))
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["title", "statement", "sources", "published", "change", "sizes", "contrasts"])
def test_what_is_missing_is_named(path):
    with pytest.raises(ConfigError, match=path):
        made(changed(path, None, drop=True))


@pytest.mark.parametrize("name", ["says", "more"])
def test_what_a_difference_lacks_is_named(name):
    with pytest.raises(ConfigError, match=f"contrasts.more: {name} is missing"):
        made(changed(f"contrasts/more/{name}", None, drop=True))


def test_a_condition_or_a_reading_that_one_size_lacks_is_refused():
    with pytest.raises(ConfigError, match="contrasts.more names deep, and size=gpu has conditions shallow"):
        made(changed("sizes/gpu/conditions", {"shallow": []}))
    given = changed("contrasts/more/at", "segments@4")
    assert made(given).differences()["more"].at == "segments@4"
    given["sizes"] = {**given["sizes"], "gpu": {**SIZE, "readings": {"segments": [1]}}}
    with pytest.raises(ConfigError, match="contrasts.more names segments@4, and size=gpu has readings .*segments@1"):
        made(given)
