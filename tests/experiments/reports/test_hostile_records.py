"""Two hundred records that somebody has tampered with: an inert report or one line, and nothing half written."""

import json
from collections import Counter

import pytest
from claim_records import record as claim
from claim_records import trained
from hostile_records import TEXTS, tampered
from inert_reports import what_acts, what_acts_in
from repository import ROOT
from rich.console import Console
from trials import Commands

from loopgrad.analysis import plots
from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.reports import claims, comparison, deltas

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
        "claimed": [claimed("learning")],
        "claimed of segments": [claimed("segments")],
    }


def claimed(figure):
    """The record of a claim with differences of every kind."""
    trainings = [
        trained(name, seed, curve={50: 0.01 * seed, 100: share}, exact=share, segments__1=share / 2, segments__64=share)
        for name, share in (("deep", 0.6), ("shallow", 0.01), ("flat", 0.005))
        for seed in range(3)
    ]
    contrasts = {
        "more": {"says": "deep solves more", "more": "deep", "less": "shallow", "by": 0.05},
        "flops": {"says": "so it does at equal FLOPs", "more": "flat", "less": "shallow", "at": "flops"},
        "alone": {"says": "deep solves half", "more": "deep", "less": None, "by": 0.5},
        "keeps": {"says": "it keeps half", **dict.fromkeys(("more", "less"), "deep"), "share": 0.5, "less_at": "exact"},
    }
    contrasts["keeps"]["at"] = "segments@1"
    return claim(trainings, contrasts, figure=figure)


def rendered(folder):
    """What was printed, or nothing where the records are refused."""
    with open(folder / "out.txt", "w+", encoding="utf-8") as out:
        console = Console(file=out, width=200, markup=False, emoji=False, highlight=False)
        try:
            first = records.first(folder / "records.jsonl")
            (deltas if "depths" in first else claims if "trainings" in first else comparison).render(folder, console)
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
    for name, start in (("compared", 0), ("compared", 25), ("compared", 50), ("analysed", 0)):
        folder = tmp_path / f"{name}{start}"
        folder.mkdir()
        found = []
        for i, text in enumerate(texts[start : start + (25 if name == "compared" else 80)]):
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
            assert (folder / "report.md").exists() == (folder / "report.html").exists() == (outcome.code == 0)
            assert outcome.code or not what_acts_in(folder, outcome.out), seed
            ends[outcome.code] += 1
    print(f"commands by exit code: {dict(ends)}")


CLAIM_IMAGES, CLAIM_LINKS = r"(\w+/)+claim\.png", r"(\w+/)+report\.md"


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_the_page_of_all_claims_is_refused_or_inert(tmp_path, whole, first):
    ends = Counter()
    for seed in range(first, first + 25):
        place = tmp_path / str(seed) / "mine" / "tiny"
        place.mkdir(parents=True)
        (place / "claim.png").touch()
        (place / "records.jsonl").write_bytes(tampered(whole["claimed"], seed))
        page = place.parent.parent / "index.md"
        try:
            found = claims.listed(page.parent, ["mine"], ["tiny"])
            claims.write_index(page.parent, ["mine"], ["tiny"], page)
        except ConfigError as error:
            assert str(error).startswith(str(place / "records.jsonl")) and len(str(error)) < 1000
            ends["refused"] += 1
            continue
        assert found["mine"]["tiny"] in ("holds", "does not hold", "undecided at this size")
        assert not what_acts(page.read_text(), CLAIM_IMAGES, CLAIM_LINKS), seed
        ends["shown"] += 1
    assert ends["refused"] >= 3 and ends["shown"] >= 3, ends


def texts_of_claims():
    """Names have 1 to 600 characters."""
    return [text for text in TEXTS if 0 < len(text) <= 600]


def test_every_hostile_text_is_inert_wherever_a_claim_has_words(tmp_path, monkeypatch):
    full = plots.rendered
    for i, text in enumerate(texts_of_claims()):
        monkeypatch.setattr(plots, "rendered", lambda figure, i=i: full(figure, ("svg",) if i % 8 == 0 else ()))
        place = tmp_path / str(i) / "mine" / "tiny"
        place.mkdir(parents=True)
        made = claim(
            [trained(text, seed, overrides=[text, f"a={text}"], exact=0.1 * seed) for seed in range(3)],
            {text: {"says": text, "more": text, "less": text, "at": text, "less_at": text}, "b": {}},
            **dict.fromkeys(("title", "statement", "published", "change", "equal", "figure"), text),
            **dict.fromkeys(("claim", "size", "commit", "date", "command", "device"), text),
            **{"sources": [text], "every": [text], "versions": {text: text}},
        )
        made["contrasts"]["b"] = {"says": text, "more": text, "less": None, "at": f"{text}@1", "by": 0.5}
        for seed, run in enumerate(made["trainings"]):
            run["readings"] |= {text: 0.1 * seed, f"{text}@1": 0.2, f"{text}@7": None}
        (place / "records.jsonl").write_text(json.dumps(made) + "\n")
        printed = rendered(place)
        assert printed is not None and not what_acts_in(place, printed), text
        (place / "claim.png").touch()
        page = tmp_path / str(i) / "index.md"
        claims.write_index(page.parent, ["mine"], ["tiny"], page)
        assert not what_acts(page.read_text(), CLAIM_IMAGES, CLAIM_LINKS), text
