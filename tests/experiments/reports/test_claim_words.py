"""The paragraph of a claim: the verdict first, each number with its unit, nothing twice."""

import re
from collections import Counter

import pytest
from claim_records import compared, record, trained

from loopgrad.experiments.reports.claims.verdicts import findings, verdict
from loopgrad.experiments.reports.claims.words import by_condition, difference, in_short, paragraph, scores


def told(made):
    found = findings(made)
    return paragraph(made, found, verdict(found))


def sentence(made):
    (found,) = findings(made)
    return difference(found, made["contrasts"][found.name])


def sentences(text):
    return re.split(r"(?<=[.!?]) ", text)


NOTHING = {
    name: {"says": f"{more} solves more than {less}{how}", "more": more, "less": less, **given}
    for name, more, less, how, given in (
        ("a", "deep", "shallow", "", {"by": 0.05}),
        ("b", "bptt", "deep", "", {"by": -0.02}),
        ("c", "bptt", "deep", " at equal FLOPs", {"at": "flops", "by": -0.02}),
    )
}


def nothing_learnt(**curves):
    return record(
        [
            trained(name, seed, steps=3, curve=curves.get(name, {1: 0.0, 2: 0.0, 3: 0.0}))
            for name in ("deep", "shallow", "bptt")
            for seed in range(3)
        ],
        NOTHING,
    )


def test_a_paragraph_of_a_claim_that_holds():
    assert told(compared([0.5, 0.6, 0.7], [0.3, 0.42, 0.48], by=0.05)) == (
        "**Holds.** Deep is better than shallow (Nobody 2025). Published: nothing. Here 2 conditions were trained for "
        "100 steps, seeds 0, 1, 2; both take the same number of steps. The claim says that deep solves more than "
        "shallow: +20.0 points (seeds +18.0 to +22.0, 95 % interval +15.0 to +25.0; at least +5.0 asked for): holds. "
        "What would change this: anything."
    )


def test_where_nothing_was_learnt_it_is_said_once():
    text = told(nothing_learnt())
    assert text == (
        "**Undecided at this size.** Deep is better than shallow (Nobody 2025). Published: nothing. Here 3 conditions "
        "were trained for 3 steps, seeds 0, 1, 2; both take the same number of steps. The claim says that deep solves "
        "more than shallow; that bptt solves more than deep; and that bptt solves more than deep at equal FLOPs: "
        "undecided, too little is solved to compare, which takes longer training or an easier task. Of deep, shallow "
        "and bptt too little has grown to say how many steps it would take. What would change this: anything."
    )


def test_a_curve_that_grows_says_how_many_steps_it_would_take():
    grown = {step: 1 / (1 + (5000 / step) ** 2) for step in (400, 500, 600, 700)}  # half after 5000
    text = told(nothing_learnt(bptt=grown))
    assert text.count("By its fitted curve bptt would solve half of the samples after 5,000 steps.") == 1
    assert "Of deep and shallow too little has grown" in text


def test_curves_of_held_out_accuracy_say_nothing_of_other_readings():
    made = compared([0.0] * 3, [0.0] * 3, at="lengths@64")
    assert "too little is solved to compare" in told(made) and "has grown" not in told(made)


def test_more_seeds_are_asked_for_where_they_would_decide():
    made = compared([0.2, 0.9, 0.3], [0.3, 0.4, 0.5])
    (found,) = findings(made)
    assert f"At this spread {found.seeds} seeds would decide whether deep solves more than shallow." in told(made)
    few = told(compared([0.6, 0.9], [0.3, 0.4]))
    assert few.count("The least that decide are 3 seeds.") == 1 and "At this spread" not in few
    assert "+40.0 points (seeds +30.0 to +50.0, 95 % interval " in few
    assert "undecided, fewer than three seeds have both readings." in few
    one = told(compared([0.6], [0.3]))
    assert "+30.0 points (one seed): undecided" in one and "seed 0; both" in one


def test_what_was_not_measured_is_said_to_be_so():
    made = compared([None] * 3, [0.3] * 3, at="solved@16")
    assert "The claim says that deep solves more than shallow: not measured." in told(made)
    assert "The least that decide" not in told(made)  # they would not have the reading either


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (compared([0.5004] * 3, [0.5] * 3), "+0.0 points (seeds +0.0 to +0.0, 95 % interval +0.0 to +0.0)"),
        (compared([0.4996] * 3, [0.5] * 3), "+0.0 points (seeds +0.0 to +0.0, 95 % interval +0.0 to +0.0)"),
        (compared([0.25] * 3, [0.5] * 3, by=0.05), "-25.0 points (seeds -25.0 to -25.0, 95 % interval -25.0 to -25.0;"),
        (compared([0.25] * 3, [0.5] * 3, by=-0.02), "; at least -2.0 asked for)"),
        (compared([8.0] * 3, [3.5] * 3, at="halted segments", share=2.0), "+1 (seeds +1 to +1, 95 % interval +1 to +1"),
        (compared([0.62] * 3, [0.5] * 3, less=None, by=0.5), "62.0 % (seeds 62.0 to 62.0, 95 % interval 62.0 to 62.0;"),
        (compared([0.62] * 3, [0.5] * 3, less=None, by=0.5), "; at least 50.0 asked for)"),
        (compared([0.62] * 3, [0.5] * 3, at="unsettled@4", less=None), ": 62.0 % (seeds"),
        (compared([3e-4] * 3, [0.5] * 3, at="residual@4", less=None), ": 0.0003 (seeds"),
    ],
)
def test_shares_are_told_in_points_and_a_share_by_itself_in_percent(made, expected):
    assert expected in sentence(made)
    assert "-0.0" not in sentence(made)


@pytest.mark.parametrize("kind", range(8))
def test_no_sentence_comes_twice(kind):
    levels = [[0.5, 0.6, 0.7], [0.0] * 3, [1.0] * 3, [0.2, 0.9, 0.3], [0.5], [None] * 3]
    trainings, contrasts = [], {}
    for i in range(6):
        for side, values in (("more", levels[i]), ("less", levels[(i * (kind + 1) + kind) % 6])):
            trainings += [
                trained(f"{side}{i}", seed, **({} if share is None else {"exact": share, "halted": share}))
                for seed, share in enumerate(values)
            ]
        for at in ("exact", "halted", "halted"):
            name = f"{i} {at} {len(contrasts)}"
            contrasts[name] = {"says": f"{i} at {at}", "more": f"more{i}", "less": f"less{i}", "at": at}
    text = told(record(trainings, contrasts))
    assert [it for it, count in Counter(sentences(text)).items() if count > 1] == []
    assert text.count("too little is solved") <= 1 and text.count("nearly all is solved") <= 1


def test_scores_are_means_with_their_extremes_in_percent():
    runs = [trained("deep", seed, exact=share) for seed, share in enumerate((0.5, 0.25, 0.75))]
    assert scores(runs, "exact") == "50.0 (25.0-75.0)"
    assert scores(runs[:1], "exact") == "50.0" and scores(runs, "halted") == "-"
    for run, value in zip(runs, (2.0, 8.0, 8.0), strict=True):
        run["readings"] |= {"halted segments": value, "solved@4": None}
    assert scores(runs, "halted segments") == "6 (2-8)" and scores(runs, "solved@4") == "-"
    assert {name: len(group) for name, group in by_condition(runs).items()} == {"deep": 3}


def test_in_short_a_claim_is_the_difference_that_decides_it_and_how_many_say_what():
    runs = [
        trained(name, seed, exact=share + spread * seed)
        for name, share, spread in (("deep", 0.6, 0.01), ("shallow", 0.3, 0.012), ("wild", 0.5, 0.08))
        for seed in range(3)
    ]
    more = {"says": "deep solves more than shallow", "more": "deep", "less": "shallow"}
    wild = {"says": "deep solves more than wild", "more": "deep", "less": "wild"}
    made = record(runs, {"more": more, "wild": wild})
    found = findings(made)
    text = in_short(made, found, verdict(found))
    assert text.startswith(
        "**Undecided at this size.** Deep is better than shallow (Nobody 2025). The claim says that deep"
    )
    assert text.endswith(
        "seeds would decide whether deep solves more than wild. Of its 2 differences 1 holds and 1 is undecided."
    )
    made = record(runs, {"more": more, "other": {**more, "by": 0.9}, "again": {**more, "by": 0.8}})
    text = in_short(made, found := findings(made), verdict(found))
    assert text.endswith(": does not hold. Of its 3 differences 1 holds and 2 do not.")
    assert in_short(record(runs, {"more": more}), found[:1], "holds").endswith(": holds.")
    made = record(runs, {"wild": wild, "again": wild})
    assert in_short(made, found := findings(made), verdict(found)).endswith(" Of its 2 differences all are undecided.")
