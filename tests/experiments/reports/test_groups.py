"""Accuracy by group: means over seeds of each estimator in the order of the groups; nothing where none are told."""

from loopgrad.experiments.records.kinds import RunRecord
from loopgrad.experiments.records.schema import holds
from loopgrad.experiments.reports import groups


def record(estimator: str, seed: int, shares: dict | None) -> dict:
    found = {"estimator": estimator, "seed": seed}
    if shares is not None:
        found["groups"] = {name: {"samples": 10, "exact_accuracy": share} for name, share in shares.items()}
    return found


def test_each_group_has_a_column_and_each_estimator_a_row():
    made = [record("a", 0, {"k=2": 0.5, "k=10": 0.1}), record("b", 0, {"k=2": 1.0, "k=10": 0.0})]
    made += [record("a", 1, {"k=2": 0.7, "k=10": 0.1}), record("b", 1, {"k=2": 1.0, "k=10": 0.2})]
    header, rows = groups.table(made)
    assert header == ["estimator", "k=2 (10)", "k=10 (10)"]
    assert rows == [["a", "60.0 (50.0-70.0)", "10.0"], ["b", "100.0", "10.0 (0.0-20.0)"]]


def test_groups_that_not_all_records_have_are_left_out():
    some = [record("a", 0, {"k=2": 0.5, "k=3": 0.1}), record("b", 0, {"k=2": 1.0})]
    assert groups.table(some)[0] == ["estimator", "k=2 (10)"]
    assert groups.table([*some, record("c", 0, None)]) == ([], [])


def test_shares_of_a_record_are_shares():
    kind = RunRecord.__annotations__  # all of them, those of its bases too
    assert "groups" in kind and "parameters" in kind
    from loopgrad.experiments.records.kinds import Group

    assert holds({"samples": 3, "exact_accuracy": 0.5}, Group)
    assert not holds({"samples": 3, "exact_accuracy": 1.5}, Group)
    assert not holds({"samples": -3, "exact_accuracy": 0.5}, Group)


def test_groups_that_a_number_tells_apart_are_drawn_over_it():
    hops = [record("a", seed, {"k=2": 0.5 + seed / 10, "k=4": 0.25, "k=10": 0.0}) for seed in (0, 1)]
    drawn = groups.drawn(hops, ["one", "one"])
    assert [(row["x"], round(row["mean"], 9)) for row in drawn.table] == [(2.0, 55.0), (4.0, 25.0), (10.0, 0.0)]
    assert drawn.figure.axes[0].get_xlabel() == "k" and drawn.table[0]["low"] == 50


def test_ranges_are_drawn_at_their_upper_ends():
    back = [record("a", 0, {"2 facts, 2 back": 0.5, "2 facts, 3-4 back": 0.25, "2 facts, 5-8 back": 0.125})]
    drawn = groups.drawn(back, ["a"])
    assert [(row["x"], row["mean"]) for row in drawn.table] == [(2.0, 50.0), (4.0, 25.0), (8.0, 12.5)]
    assert drawn.figure.axes[0].get_xlabel() == "2 facts, back, upper ends of ranges"


def test_groups_of_other_names_or_too_few_are_not_drawn():
    for names in (
        ("k=2", "k=3"),
        ("k=2", "j=3", "k=4"),
        ("few", "more", "most"),
        ("1 of 2", "2 of 2", "3 of 2"),
        ("a 1-2", "b 3-4", "a 5"),
    ):
        assert groups.drawn([record("a", 0, dict.fromkeys(names, 0.5))], ["a"]) is None
    assert groups.drawn([record("a", 0, None)], ["a"]) is None
