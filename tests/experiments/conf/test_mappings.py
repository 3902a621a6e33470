"""Mappings of plain values in configurations: taken where the target says so, and nothing in them is run or made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from omegaconf import OmegaConf

from loopgrad.experiments.conf.build import build
from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.errors import ConfigError
from loopgrad.gradients import LastOf, TruncatedBPTT

LAST = {"_target_": "loopgrad.gradients.LastOf"}
TRUNCATED = {"_target_": "loopgrad.gradients.TruncatedBPTT"}
RUN = {"_target_": "os.mkdir", "path": "made"}


@dataclass
class Taking:
    """A target with every kind of mapping."""

    counts: Mapping[str, int] | None = None
    names: dict[int, str] | None = None
    anything: dict | None = None
    nested: Mapping[str, list[float]] | None = None
    untyped: Any = None
    number: int = 0
    call: Callable[[], int] | None = None


TAKING = {"_target_": f"{__name__}.Taking"}
CLASSES = {
    "mine.Taking": Taking,
    "loopgrad.gradients.LastOf": LastOf,
    "loopgrad.gradients.TruncatedBPTT": TruncatedBPTT,
}
MINE = {"_target_": "mine.Taking"}


def test_the_counts_of_last_of_are_given_in_a_file_of_ones_own_and_on_the_command_line(tmp_path):
    expected = TruncatedBPTT(scope=LastOf({"z_H": 1, "z_L": 2}))
    counts = "estimator.last_cycle.scope={_target_:loopgrad.gradients.LastOf,counts:{z_H:1,z_L:2}}"
    node = composed("train", ["estimator=last_cycle", "estimator.last_cycle.num_cycles=null", f"+{counts}"]).estimator
    assert build(node.last_cycle, "estimator.last_cycle") == expected
    text = "_target_: loopgrad.gradients.TruncatedBPTT\nscope:\n  _target_: loopgrad.gradients.LastOf\n"
    (tmp_path / "mine.yaml").write_text(f"{text}  counts:\n    z_H: 1\n    z_L: 2\n")
    assert build(OmegaConf.load(tmp_path / "mine.yaml"), "estimator") == expected


@pytest.mark.parametrize("classes", [None, CLASSES], ids=["of the user", "of a file"])
def test_mappings_reach_the_target_as_plain_dicts(classes):
    given = {
        "counts": {"z_H": 1, "0": 2},
        "names": {1: "a"},
        "anything": {"a": [1, {"b": None}], "c": {"d": "e"}},
        "nested": {"a": [1.0, 2]},
    }
    made = build({**(TAKING if classes is None else MINE), **given}, "it", classes)
    assert vars(made) == {**given, "untyped": None, "number": 0, "call": None}
    assert all(type(getattr(made, name)) is dict for name in given)
    assert build({**(TAKING if classes is None else MINE), "counts": {}}, "it", classes).counts == {}
    scope = {**LAST, "counts": {"z_H": 1, "z_L": 2}}
    assert build({**TRUNCATED, "scope": scope}, "it", classes) == TruncatedBPTT(scope=LastOf({"z_H": 1, "z_L": 2}))


REFUSED = {
    "a word": (
        {"counts": {"z_H": "one"}},
        "it.counts.z_H=one: must be int or null, got str|it.counts.z_H=one: must be int",
    ),
    "a fraction": ({"counts": {"z_H": 1.5}}, r"it.counts.z_H=1.5: must be int, got float"),
    "a flag": ({"counts": {"z_H": True}}, "it.counts.z_H=True: must be int, got bool"),
    "a number for a name": ({"counts": {0: 1}}, "it.counts: the key 0=0: must be str, got int"),
    "a list in it": ({"counts": {"z_H": [1]}}, "it.counts.z_H=.*must be int, got list"),
    "a mapping in it": ({"counts": {"z_H": {"a": 1}}}, "it.counts.z_H=.*must be int, got dict"),
    "a name for a number": ({"names": {"a": "b"}}, "it.names: the key a=a: must be int, got str"),
    "too deep a list": ({"nested": {"a": ["b"]}}, r"it.nested.a=.*must be .*list"),
    "no mapping": ({"number": {"a": 1}}, "it.number has no _target_: give the class"),
    "a protocol": ({"call": {"a": 1}}, "it.call has no _target_: give the class"),
    "nothing said": ({"untyped": {"a": 1}}, "it.untyped has no _target_: give the class"),
    "a node in it": ({"anything": {"a": RUN}}, "it.anything._target_: a mapping holds plain values"),
    "a node in a list in it": ({"anything": {"a": [[RUN]]}}, "it.anything._target_: a mapping holds plain values"),
    "a key of hydra's": ({"anything": {"_partial_": True}}, "it.anything._partial_: a mapping holds plain values"),
    "a list for it": ({"counts": [1, 2]}, "it.counts=.*must be"),
}


@pytest.mark.parametrize("classes", [None, CLASSES], ids=["of the user", "of a file"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_such_mapping_is_refused_by_its_place(name, classes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given, text = REFUSED[name]
    with pytest.raises(ConfigError, match=text):
        build({**(TAKING if classes is None else MINE), **given}, "it", classes)
    assert list(tmp_path.iterdir()) == []


def test_a_class_in_a_file_that_is_none_of_the_table_is_refused_where_a_mapping_may_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("counts", "anything"):
        with pytest.raises(ConfigError, match="no class but loopgrad's own is taken from a file"):
            build({**MINE, place: RUN}, "it", CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_counts_are_bounded_and_the_target_has_the_last_word():
    for counts, text in (
        ({"z_H": 2**40}, "it.counts=1099511627776: must be at most"),
        ({"z_H": -1}, r"it: LastOf\(counts\['z_H'\]=-1\)|it: LastOf.*z_H"),
        ({}, "names no update"),
    ):
        with pytest.raises(ConfigError, match=text):
            build({**LAST, "counts": counts}, "it")


def test_values_in_one_another_end_somewhere():
    value: Any = 1
    for _ in range(400):
        value = [value]
    with pytest.raises(ConfigError, match="more than 16 deep"):
        build({**MINE, "anything": {"a": value}}, "it", CLASSES)


def test_a_mapping_is_also_taken_where_another_type_may_be():
    def made(shape: Mapping[str, int] | list[int] = ()) -> Any:
        return shape

    classes = {"made": made}
    assert build({"_target_": "made", "shape": {"a": 1}}, "it", classes) == {"a": 1}
    assert build({"_target_": "made", "shape": [1, 2]}, "it", classes) == [1, 2]
