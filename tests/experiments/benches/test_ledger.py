"""The ledger of a bench: what was measured is kept as it ends, nothing is measured twice, and nothing is mixed."""

import json
import math
import random
from dataclasses import dataclass

import pytest
from rich.console import Console

from loopgrad.experiments import records
from loopgrad.experiments.benches import validity
from loopgrad.experiments.benches.kept import KeptLedger
from loopgrad.experiments.benches.ledger import Ledger, Part
from loopgrad.experiments.benches.shown import ShownRows
from loopgrad.experiments.errors import ConfigError, WorkerLost

ABOUT = {"bench": {"_target_": "a.b.C", "lengths": [1, 2]}, "versions": {"torch": "2"}, "commit": "c"}
VALUES = [0.1, 1e-300, 1 / 3, math.pi, 2**60, "words", None, True, [1.5, [2, None]], math.inf]


class Watched:
    """What the ledger tells of its work."""

    def __init__(self):
        self.said, self.done, self.total, self.kept = [], 0, 0, 0

    def expect(self, rows):
        self.total += rows

    def begin(self, name):
        self.said.append(name)

    def end(self, name, rows, kept):
        self.done += rows
        self.kept += rows * kept


def parts(called, stop_at=None):
    def of(i):
        for row in range(2):
            if stop_at == (i, row):
                raise KeyboardInterrupt
            called.append((i, row))
            yield {"i": i, "row": row, "values": [*VALUES, random.Random(10 * i + row).random()]}

    return [Part(f"part {i % 3}", lambda i=i: of(i), rows=2) for i in range(5)]  # two of a name, twice


def ledger(path, about=ABOUT, restart=False):
    watched = Watched()
    return KeptLedger(path, about, watched, restart), watched


def test_a_ledger_that_keeps_nothing_measures_all():
    called = []
    assert len(list(Ledger().each(parts(called)))) == len(called) == 10


@pytest.mark.parametrize("at", [(0, 0), (0, 1), (2, 0), (4, 1)])
def test_it_goes_on_where_it_was_cut_off_and_the_rows_are_the_same(tmp_path, at):
    path, called = tmp_path / "x.rows.jsonl", []
    whole = list(KeptLedger(tmp_path / "other.rows.jsonl", ABOUT, Watched()).each(parts([])))
    with pytest.raises(KeyboardInterrupt):
        list(ledger(path)[0].each(parts(called, at)))
    assert path.exists() == (at > (1, 0)), "nothing is written before a part is whole"
    book, watched = ledger(path)
    again = []
    assert list(book.each(parts(again))) == whole
    assert again == [(i, row) for i in range(at[0], 5) for row in range(2)]
    assert watched.done == watched.total == 10 and len(watched.said) == 5 - at[0]
    book.remove()
    assert not path.exists()


def filled(path):
    rows = list(ledger(path)[0].each(parts([])))
    return rows, path.read_bytes()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_cut_short_is_measured_again(tmp_path, cut):
    path = tmp_path / "x.rows.jsonl"
    rows, content = filled(path)
    path.write_bytes(content[:-cut])
    again = []
    book, _ = ledger(path)
    assert list(book.each(parts(again))) == rows and again == [(4, 0), (4, 1)]
    assert book.remarks == []
    assert path.read_bytes() == content


def test_damaged_lines_are_measured_again_and_it_is_said(tmp_path):
    path, draw = tmp_path / "x.rows.jsonl", random.Random(0)
    rows, content = filled(path)
    for _ in range(100):
        place = draw.randrange(len(content) - 1)
        damaged = bytearray(content)
        damaged[place] = draw.randrange(256)
        path.write_bytes(damaged)
        again = []
        if damaged == content:
            continue
        try:
            book, _ = ledger(path)
        except ConfigError as error:  # in the line that says what the rows are of
            assert place < content.index(b"\n") and "\n" not in str(error)
            continue
        assert list(book.each(parts(again))) == rows and again
        (remark,) = book.remarks
        assert "measured anew" in remark and "\n" not in remark


def test_rows_of_other_settings_are_refused_and_replaced_when_asked(tmp_path):
    path = tmp_path / "x.rows.jsonl"
    _, content = filled(path)
    for other, named in (
        ({**ABOUT, "bench": {**ABOUT["bench"], "lengths": [3]}}, "bench.lengths"),
        ({**ABOUT, "versions": {"torch": "3"}}, "versions.torch"),
        ({**ABOUT, "commit": "d"}, "commit"),
    ):
        with pytest.raises(ConfigError, match=named):
            ledger(path, other)
        assert path.read_bytes() == content
    again = []
    book, _ = ledger(path, other, restart=True)
    assert len(list(book.each(parts(again)))) == len(again) == 10


def test_lines_of_another_ledger_are_not_taken(tmp_path):
    path, other = tmp_path / "x.rows.jsonl", tmp_path / "y.rows.jsonl"
    filled(path)
    list(ledger(other, {**ABOUT, "commit": "d"})[0].each(parts([])))
    head = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(head + b"".join(other.read_bytes().splitlines(keepends=True)[1:]))
    again = []
    list(ledger(path)[0].each(parts(again)))
    assert len(again) == 10


def test_what_is_no_file_is_refused(tmp_path):
    path = tmp_path / "x.rows.jsonl"
    path.mkdir()
    with pytest.raises(ConfigError, match="no file"):
        ledger(path)
    path.rmdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="no file"):
        ledger(path)


@dataclass(frozen=True)
class Found:
    square: int
    shares: list[float]


CALLS = []


def work(job):
    CALLS.append(job)
    if job == 7:
        raise KeyboardInterrupt
    return Found(job**2, [job / 3])


def test_jobs_are_kept_one_by_one(tmp_path):
    path = tmp_path / "x.rows.jsonl"
    CALLS.clear()
    with pytest.raises(KeyboardInterrupt):
        ledger(path)[0].mapped(work, [5, 6, 7, 8], 1, Found)
    assert len(path.read_text().splitlines()) == 3
    assert json.loads(path.read_text().splitlines()[1])["found"] == [{"square": 25, "shares": [5 / 3]}]
    CALLS.clear()
    book, watched = ledger(path)
    assert book.mapped(work, [5, 6, 8], 1, Found) == [Found(n**2, [n / 3]) for n in (5, 6, 8)]
    assert CALLS == [8] and watched.done == watched.total == 3


@pytest.mark.slow
def test_a_command_that_is_interrupted_keeps_its_rows_and_goes_on(loopgrad, tmp_path, monkeypatch):
    command = ("bench", "validity", "bench.width=8", "bench.lengths=[4]", "bench.radii=[0.5,0.7,0.9]")
    assert loopgrad(*command, "output_dir=whole").code == 0
    compared, calls = validity._compared, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compared(*arguments)

    monkeypatch.setattr(validity, "_compared", interrupted)
    cut = loopgrad(*command, "output_dir=out")
    assert (
        cut.code == 130 and cut.err == "loopgrad: interrupted; the same command goes on with the rows that are left\n"
    )
    assert cut.out == "   2/6  radius 0.5\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["validity.rows.jsonl"]
    other = loopgrad(*command[:-1], "bench.radii=[0.5]", "output_dir=out")
    assert other.code == 2 and "bench.radii" in other.err and other.err.count("\n") == 1
    rest = loopgrad(*command, "output_dir=out")
    assert rest.code == 0 and len(calls) == 4 and "goes on with what" in rest.out and "   6/6  radius 0.9" in rest.out
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("whole", "out")]
    assert names[0] == names[1]
    one, two = (records.first(tmp_path / name / "validity.json") for name in ("whole", "out"))
    assert one["rows"] == two["rows"] and one.keys() == two.keys()
    assert "restart=1: must be true or false" in loopgrad(*command, "restart=1", "output_dir=out").err


def test_the_time_left_is_told_from_rows_that_were_measured(tmp_path):
    console = Console(force_terminal=True, width=120, file=open(tmp_path / "shown", "w"))
    now = [0.0]
    console.get_time = lambda: now[0]
    with ShownRows("x", console) as shown:
        shown._progress.get_time = shown._progress.tasks[0]._get_time = lambda: now[0]
        shown._progress.reset(shown._bar)
        shown.expect(10)
        shown.end("kept", 4, True)
        shown.begin("row 5")
        now[0] = 60.0
        shown.end("row 5", 2, False)
        text = "".join(str(column(shown._task)) for column in shown._progress.columns)
    console.file.close()
    assert "6/10 rows" in text and "0:02:00 left" in text and "row 5" in text


@pytest.mark.slow
def test_jobs_of_workers_are_kept_as_they_end(tmp_path):
    path = tmp_path / "x.rows.jsonl"
    with pytest.raises(WorkerLost):  # 5 is kept or not, as it ends before that or after
        ledger(path)[0].mapped(work, [5, 7, 6], 2, Found)
    assert ledger(path)[0].mapped(work, [5, 6], 2, Found) == [Found(n**2, [n / 3]) for n in (5, 6)]
    book, watched = ledger(path)
    assert {*book._found} == {"5", "6"}
    assert book.mapped(work, [5, 6, 8], 2, Found) == [Found(n**2, [n / 3]) for n in (5, 6, 8)]
    assert watched.kept == 2
