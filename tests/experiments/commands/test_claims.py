"""loopgrad claims as typed: what is listed, refused, recorded, gone on with and left alone."""

import shutil
from pathlib import Path

import pytest
from inert_reports import what_acts
from omegaconf import OmegaConf
from small_claims import written
from trials import contents

from loopgrad.experiments import records
from loopgrad.experiments.claims import SIZES
from loopgrad.experiments.cli import USAGE, spelt
from loopgrad.experiments.commands import claims
from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.folders import held
from loopgrad.experiments.records import ClaimRecord
from loopgrad.experiments.reports.claims import write_index
from loopgrad.experiments.reports.claims.index import TITLE

CLAIM = ["claims", "mine", "size=tiny", "seeds=[0]", "workers=1", "output_dir=out"]


@pytest.fixture
def mine(tmp_path):
    return [*CLAIM, written(tmp_path)]


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A folder in which `mine` was tested; it is copied and never changed."""
    return tmp_path_factory.mktemp("claims")


@pytest.fixture
def done(tested, tmp_path, mine, loopgrad):
    """The same folder for each test."""
    if not (tested / "out").exists():
        assert loopgrad(*mine).code == 0
        shutil.move(tmp_path / "out", tested / "out")
    return Path(shutil.copytree(tested / "out", tmp_path / "out"))


def test_claims_are_listed_by_their_whole_names_in_a_narrow_terminal(loopgrad, tmp_path):
    found = loopgrad("claims")
    assert found.code == 0 and not list(tmp_path.iterdir())
    for name in claims._known():
        (line,) = [line for line in found.out.splitlines() if line.split()[:1] == [name]]
        assert line.rstrip().endswith("not run") and len(line) <= 80
    assert "loopgrad claims NAME" in found.out
    assert "\n  claims " in USAGE


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["claim=gradient_scop"], "claim=gradient_scop: there is no such claim; did you mean gradient_scope?"),
        (["claim=gradient_scope", "size=small"], "size=small: no such size; there is: cpu, gpu, tiny"),
        (["claim=gradient_scope", "size=cpus"], "size=cpus: no such size; did you mean cpu"),
        (["claim=gradient_scope", "all=true"], "all=true tests every claim: leave claim= out"),
        (["all=yes"], "all=yes: must be true or false"),
        (["claim=gradient_scope", "also=trainer.device"], "also=trainer.device: must be a list of overrides"),
        (["claim=gradient_scope", "also=[5]"], "also=[5]: must be a list of overrides, such as also=[trainer.device="),
        (["claim=gradient_scope", "also=null"], "claims cannot do without also; give also="),
        (["claim=gradient_scope", "minutes=0.5"], "minutes=0.5: must be an int of at least 1 or null"),
        (["claim=gradient_scope", "workers=0"], "workers=0: must be an int of at least 1 or null"),
        (["claim=gradient_scope", "seeds=[]"], "seeds=[]: must be a list of ints of at least 0"),
        (["claim=gradient_scope", "seeds=[0,0]"], "seeds=[0, 0]: a seed is named twice"),
        (["claim=gradient_scope", "task=sudoku9"], "task=sudoku9: there is no key task"),
        (["claim=gradient_scope", "output_dir=''"], "output_dir=: must be the path of a folder"),
        (["claim=gradient_scope", "page=''"], "page=: must be the path of a file"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused_before_anything_begins(refused, overrides, line):
    assert line in refused("claims", *overrides)


@pytest.mark.slow
@pytest.mark.parametrize("also", ["also=[trainer.train_step=1]", "also=[estimator=[bptt,one_step]]"])
def test_a_condition_that_cannot_be_composed_costs_no_folder(refused_as_typed, mine, also):
    assert "condition one_step: " in refused_as_typed(*mine, also)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("also=[trainer.train_steps=1]", ["trainer.train_steps=1"]),
        ("also=[]", []),
        ("also=[ estimator=[bptt] , +task.x={a:1,b:[2,3]}]", ["estimator=[bptt]", "+task.x={a:1,b:[2,3]}"]),
        ("also=['a=b',\"c=d\"]", ["a=b", "c=d"]),
        ("also=[task.path=/a b/c.csv]", ["task.path=/a b/c.csv"]),
    ],
)
def test_overrides_within_also_need_no_quotes(typed, found):
    command, overrides = "claims", spelt("claims", ["gradient_scope", typed])
    assert overrides[0] == "claim=gradient_scope" and list(composed(command, overrides).also) == found
    assert spelt("train", [typed]) == [typed]


def test_a_condition_and_a_difference_of_ones_own_are_added_by_name():
    own = ["+claim.sizes.tiny.conditions.mine=[estimator=truncated]", "claim.sizes.tiny.every=[task=sudoku4]"]
    own += ["+claim.contrasts.mine={says:'it solves more, too',more:mine,less:bptt,by:0.05}"]
    claim = composed("claims", spelt("claims", ["gradient_scope", *own])).claim
    assert claim.sizes.tiny.conditions.mine == ["estimator=truncated"] and claim.sizes.tiny.every == ["task=sudoku4"]
    assert claim.contrasts.mine == {"says": "it solves more, too", "more": "mine", "less": "bptt", "by": 0.05}
    with pytest.raises(ConfigError, match="claim.contrasts.mine is not set so far; to add it, write \\+claim"):
        composed("claims", ["claim=gradient_scope", own[2][1:]])
    with pytest.raises(ConfigError, match="there is no key claim.colour"):
        composed("claims", ["claim=gradient_scope", "+claim.colour=red"])


@pytest.mark.slow
def test_a_claim_is_trained_read_recorded_and_reported(done, loopgrad, mine, monkeypatch):
    (record,) = records.read(done / "mine" / "tiny" / "records.jsonl", ClaimRecord)
    assert (record["claim"], record["size"], record["every"]) == ("mine", "tiny", [])
    assert record["contrasts"]["more"] == {
        **{"says": "BPTT solves more", "more": "bptt", "less": "one_step"},
        **{"at": "exact", "less_at": None, "share": 1.0, "by": 0.0},
    }
    runs = record["trainings"]
    assert [(run["condition"], run["seed"]) for run in runs] == [("one_step", 0), ("bptt", 0)]
    for run in runs:
        assert set(run["readings"]) == {"exact", "tokens", "match", "segments@1", "segments@3"}
        assert run["curve"]["step"] == [1, 2] and run["saved_bytes"] > 0 and run["flops"] > 0
        composed("train", [*run["overrides"], "seed=0"])
    assert runs[0]["flops"] < runs[1]["flops"]
    page, index = ((done / name).read_text() for name in ("mine/tiny/report.md", "index.md"))
    for text in (page, index):
        assert "**Undecided at this size.** BPTT solves more than one step does." in text
    assert page.startswith("# One of my own\n") and not what_acts(page)
    assert "loopgrad train task=rolling_sum " in page and index.startswith(f"{TITLE}\n")
    (done / "mine" / "tiny" / "report.md").unlink()
    assert loopgrad("report", "output_dir=out/mine/tiny").code == 0
    assert (done / "mine" / "tiny" / "report.md").read_text() == page
    monkeypatch.setattr(claims, "execute_all", lambda *_: pytest.fail("trained again"))
    before = (done / "mine" / "tiny" / "records.jsonl").read_bytes()
    again = loopgrad(*mine)
    assert again.code == 0 and "restart=true runs it anew" in again.out
    assert (done / "mine" / "tiny" / "records.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_page_elsewhere_shows_the_figures_from_there(done, tmp_path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "docs" / "claims.md"
    write_index(done, ["mine", "other"], SIZES, page)
    assert "![One of my own](../out/mine/tiny/claim.png)" in page.read_text()
    assert (page.parent / "../out/mine/tiny/claim.png").exists()


@pytest.mark.slow
def test_other_overrides_are_another_configuration(done, refused_as_typed, mine):
    line = refused_as_typed(*mine, "seeds=[0,1]", "also=[trainer.learning_rate=0.5]")
    assert "holds results of another configuration (seeds: [0] -> [0, 1], every: [] -> ['trainer.learn" in line


def test_results_that_other_differences_judged_are_not_passed_off_as_those_asked_for(done, refused_as_typed, mine):
    typed = [*mine, "claim.contrasts.deeper.by=0.5", "claim.contrasts.more.says=something else"]
    line = refused_as_typed(*typed)
    assert "holds results that were judged by other differences (contrasts.deeper.by: -0.02 -> 0.5): choose" in line


def test_a_page_that_is_none_of_ours_is_left_alone(refused_as_typed, mine, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.md").write_text("# My site\n")
    assert "out/index.md is not a page of claims, and one goes there" in refused_as_typed(*mine)
    assert (tmp_path / "out" / "index.md").read_text() == "# My site\n"


@pytest.mark.slow
def test_a_folder_in_use_is_refused(mine, loopgrad, tmp_path):
    with held(tmp_path / "out" / "mine" / "tiny"):
        found = loopgrad(*mine)
    assert found.code == 2 and found.err.count("\n") == 1
    assert "out/mine/tiny is in use by another loopgrad command, process" in found.err


def test_a_damaged_record_is_one_line_and_nothing_is_lost(done, loopgrad, mine):
    path, content = done / "mine" / "tiny" / "records.jsonl", '{"claim": "mine"}\n'
    path.write_text(content)
    found = loopgrad(*mine)
    assert found.code == 2 and found.err.count("\n") == 1
    assert found.err.startswith("loopgrad: out/mine/tiny/records.jsonl, line 1: ")
    assert path.read_text() == content and (path.parent / "runs" / "bptt-seed0" / "weights.safetensors").exists()
    (done / "mine").rename(done / "gradient_scope")  # a claim that is listed
    listed = loopgrad("claims", "output_dir=out")
    assert listed.code == 2 and listed.err == found.err.replace("mine", "gradient_scope")


@pytest.mark.slow
def test_beginning_anew_removes_no_more_than_it_made(done, loopgrad, mine):
    place = done / "mine" / "tiny"
    others = ["notes.txt", "runs/bptt-seed0/notes.txt", "runs/mine-seed0/weights.safetensors", "runs/bptt-seed7/x"]
    for name in others:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("mine")
    kept = {path: path.read_bytes() for path in done.rglob("*") if path.name == "index.md"}
    found = loopgrad(*mine, "restart=true", "also=[trainer.train_steps=1]")
    assert found.code == 0
    assert all((place / name).read_text() == "mine" for name in others) and kept
    (record,) = records.read(place / "records.jsonl", ClaimRecord)
    assert record["every"] == ["trainer.train_steps=1"] and [it["train_steps"] for it in record["trainings"]] == [1, 1]


class Clock:
    """A clock that stands still until it has been looked at so many times, and then is far ahead."""

    def __init__(self, looks):
        self.looks = looks

    def monotonic(self):
        self.looks -= 1
        return 0.0 if self.looks >= 0 else 1e6


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_when_the_minutes_are_over_the_same_command_goes_on(loopgrad, mine, done, tmp_path, monkeypatch, workers):
    whole, place = contents(done), tmp_path / "out" / "mine" / "tiny"
    shutil.rmtree(done)
    with monkeypatch.context() as patch:
        patch.setattr(claims, "time", Clock(looks=3))  # the end is set, and asked for after each step
        found = loopgrad(*mine, "minutes=1", f"workers={workers}")
    assert found.code == 1
    assert found.err == "loopgrad: minutes=1 are over; the same command goes on from what is stored\n"
    assert not (place / "records.jsonl").exists() and not (tmp_path / "out" / "index.md").exists()
    if workers == 1:
        assert [len(path.read_text().splitlines()) for path in sorted(place.glob("runs/*/train.jsonl"))] == [1, 2]
    assert loopgrad(*mine, f"workers={workers}").code == 0
    assert contents(tmp_path / "out") == whole


@pytest.mark.slow
def test_of_all_claims_those_that_cannot_be_tested_are_named_and_the_others_are(loopgrad, tmp_path, monkeypatch):
    written(tmp_path, "good")
    written(tmp_path, "bad", every="task.length=4")
    nodes = {name: OmegaConf.load(tmp_path / "own" / "claim" / f"{name}.yaml") for name in ("bad", "good")}
    monkeypatch.setattr(claims, "_known", lambda: nodes)
    found = loopgrad("claims", "all", "size=tiny", "seeds=[0]", "workers=1", "output_dir=out")
    assert found.code == 1 and found.err == "loopgrad: 1 of 2 claims could not be tested: bad\n"
    assert "bad: condition one_step: task.length=4: there is no key task.length" in found.out
    assert "## One of my own" in (tmp_path / "out" / "index.md").read_text()
    (tmp_path / "out" / "index.md").unlink()
    written(tmp_path, "late")
    nodes["late"] = OmegaConf.load(tmp_path / "own" / "claim" / "late.yaml")
    monkeypatch.setattr(claims, "time", Clock(looks=2))
    late = loopgrad("claims", "all", "size=tiny", "seeds=[0]", "workers=1", "output_dir=out", "minutes=1")
    assert late.code == 1 and "minutes=1 are over" in late.err
    assert "## One of my own" in (tmp_path / "out" / "index.md").read_text()  # of what was tested before
