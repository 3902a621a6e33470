"""Two hundred records that somebody has tampered with: an inert report or one line, and nothing half written."""

import json
from collections import Counter

import pytest
from hostile_records import TEXTS, tampered
from inert_reports import what_acts_in
from repository import ROOT
from rich.console import Console
from trials import Commands

from loopgrad.analysis import plots
from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.reports import comparison, deltas

pytestmark = [pytest.mark.slow]
pytest.importorskip("matplotlib")


def real(name, count):
    return records.read(ROOT / "docs/results" / name / "records.jsonl")[:count]


@pytest.fixture(scope="module")
def whole():
    return {
        "compared": [*real("shortcuts/0", 2), *real("shortcuts/0", 12)[-1:]],
        "implicit": real("implicit/sudoku6", 18)[-2:],
        "analysed": real("deltas", 2),
        "two groups": [real("deltas", 1)[0], real("deltas", 144)[-1]],
    }


def rendered(folder):
    """What was printed, or nothing where the records are refused."""
    with open(folder / "out.txt", "w+", encoding="utf-8") as out:
        console = Console(file=out, width=200, markup=False, emoji=False, highlight=False)
        try:
            analysed = "depths" in records.first(folder / "records.jsonl")
            (deltas if analysed else comparison).render(folder, console)
        except ConfigError as error:
            assert str(error).startswith(str(folder / "records.jsonl")) and len(str(error)) < 1000
            return None
        out.seek(0)
        return out.read()


@pytest.mark.parametrize("first", range(0, 200, 25))
def test_a_tampered_record_is_refused_or_its_report_is_inert(tmp_path, whole, first, monkeypatch):
    ends, full = Counter(), plots.rendered
    for seed in range(first, first + 25):
        folder = tmp_path / str(seed)
        folder.mkdir()
        # one in six is drawn to its end, and with pixels by the commands below
        drawn = ("svg",) if seed % 6 == 0 else ()
        monkeypatch.setattr(plots, "rendered", lambda figure, drawn=drawn: full(figure, drawn))
        name = list(whole)[seed % len(whole)]
        (folder / "records.jsonl").write_bytes(tampered(whole[name], seed))
        printed = rendered(folder)
        left = {path.name for path in folder.rglob("*")} - {"records.jsonl", "out.txt"}
        if printed is None:
            assert not left, (seed, left)
        else:
            assert not (found := what_acts_in(folder, printed)), (seed, found)
        ends["refused" if printed is None else "rendered"] += 1
    print(f"records {first} to {first + 24}: {dict(ends)}")
    assert ends["refused"] >= 3 and ends["rendered"] >= 3


def test_every_hostile_text_is_inert_wherever_a_report_has_names(tmp_path, whole, monkeypatch):
    full = plots.rendered
    monkeypatch.setattr(plots, "rendered", lambda figure: full(figure, ("svg",)))
    texts = [text for text in TEXTS if 0 < len(text) <= 200 and text not in ("bptt", "joint", "z_L")]
    for name, start in (("compared", 0), ("compared", 25), ("analysed", 0)):
        folder = tmp_path / f"{name}{start}"
        folder.mkdir()
        found = []
        for i, text in enumerate(texts[start : start + (25 if name == "compared" else 60)]):
            record = json.loads(json.dumps(whole[name][0])) | {"device": text, "command": text, "commit": text}
            record |= {"estimator": text, "model": text, "task": text, "group": text, "name": text}
            found.append(record | {"versions": {text: text}, "seed": i})
            found[-1].pop("memory", None)
        (folder / "records.jsonl").write_text("\n".join(map(json.dumps, found)))
        printed = rendered(folder)
        assert printed is not None and not what_acts_in(folder, printed)


def test_the_command_ends_in_a_report_or_in_one_line(tmp_path, whole):
    ends = Counter()
    with Commands() as commands:
        for seed in range(0, 96, 12):
            folder = tmp_path / str(seed)
            folder.mkdir()
            (folder / "records.jsonl").write_bytes(tampered(whole[list(whole)[seed // 12 % len(whole)]], seed))
            outcome = commands.run(folder, "report", "output_dir=.", limits={"RLIMIT_AS": 2**33})
            assert outcome.in_one_line() and outcome.code in (0, 2), (seed, outcome)
            assert (folder / "report.md").exists() == (outcome.code == 0)
            assert outcome.code or not what_acts_in(folder, outcome.out), seed
            ends[outcome.code] += 1
    print(f"commands by exit code: {dict(ends)}")
