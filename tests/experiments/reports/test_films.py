"""Samples segment by segment on a page: what is marked, what is told, and that hostile records are inert."""

from inert_pages import what_acts_on

from loopgrad.experiments.reports.films import films
from loopgrad.experiments.reports.html import Film, Fold, Page, Section, document

FRAMES = [
    {"solved": 0, "halts": 0, "wrong": 2, "lines": ["1 2", "3 4"], "marked": [[0, 2, 2], [1, 0, 0]]},
    {"solved": 0, "halts": 1, "wrong": 2},
    {"solved": 1, "halts": 0, "wrong": 0, "lines": ["1 3", "2 4"], "marked": []},
]
SAMPLE = {
    "sample": 5,
    "scored": 4,
    "right": ["1 3", "2 4"],
    "frames": FRAMES,
    "residuals": [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03],
    "verdicts": {"training": {"joint": 1}},
}


def film(**changes) -> Film:
    (_, fold) = films([("bptt", [{**SAMPLE, **changes}])])
    assert isinstance(fold, Fold)
    return fold.parts[0]


def test_each_frame_says_what_is_wrong_and_marks_it():
    found = film()
    assert [frame.caption for frame in found.frames] == [
        "Segment 1: 2 of 4 cells wrong, residual 0.5",
        "Segment 2: 2 of 4 cells wrong, residual 0.12, halts",
        "Segment 3: solved, residual 0.03",
    ]
    marked = [[("1 ", False), ("2", True), ("", False)], [("", False), ("3", True), (" 4", False)]]
    assert found.frames[0].lines == marked == found.frames[1].lines
    assert found.beside.lines == [[("1 3", False)], [("2 4", False)]]


def test_places_that_a_record_invents_break_nothing():
    frame = {**FRAMES[0], "marked": [[9, 0, 0], [0, 7, 9], [0, 2, 1], [1, 0, 10**9], [1, 1, 1]]}
    lines = film(frames=[frame]).frames[0].lines
    assert ["".join(text for text, _ in line) for line in lines] == ["1 2", "3 4"]


def test_a_sample_of_several_weights_is_told_once_with_all_of_them():
    other = {**SAMPLE, "frames": FRAMES[:2], "residuals": []}
    parts = films([("bptt", [SAMPLE]), ("one_step", [other]), ("nothing", [])])
    assert [part.summary for part in parts if isinstance(part, Fold)] == ["Sample 5: solved by 1 of 2"]
    own = [part for part in parts[1].parts if isinstance(part, Film)]
    assert [it.title for it in own] == ["bptt", "one_step"] and [it.beside is None for it in own] == [False, True]
    assert films([("nothing", [])]) == []


def test_what_a_record_says_is_shown_and_does_nothing():
    evil = "<script>alert(1)</script>"
    frames = [{**FRAMES[0], "lines": [evil, '"><img src=x onerror=alert(1)>'], "marked": [[0, 0, 4]]}]
    page = Page("k", "t", [], [], [Section("a", "A", films([(evil, [{**SAMPLE, "frames": frames, "right": [evil]}])]))])
    text = document(page)
    assert what_acts_on(text) == [] and evil.encode() not in text and b"&lt;scri" in text
