"""Folders side by side: what differs is named, seeds are put together if they are of one question, else it says why."""

import pytest
from inert_pages import what_acts_on
from inert_reports import what_acts
from repository import ROOT
from rich.console import Console

from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.reports import side_by_side, summary
from loopgrad.experiments.reports.poolable import Place, differences, reasons, same_task

REAL = ROOT / "docs/results/shortcuts/0/records.jsonl"


@pytest.fixture
def folders(tmp_path):
    """Makes folders of the real records of a seed, changed."""

    def make(name, seed, change=lambda record: None):
        found = [record for record in records.read(REAL) if record["seed"] == seed]
        for record in found:
            change(record)
        records.write(tmp_path / name / "records.jsonl", found)
        return tmp_path / name

    return make


def render(paths, tmp_path, together=False):
    with open(tmp_path / "out.txt", "w") as out:
        side_by_side.render(paths, tmp_path / "both", together, Console(file=out, width=200))
    page = (tmp_path / "both" / "report.html").read_bytes()
    assert what_acts_on(page) == [] and not what_acts((tmp_path / "both" / "report.md").read_text())
    return (tmp_path / "both" / "report.md").read_text(), page.decode()


def test_the_seeds_of_one_configuration_can_be_put_together(folders, tmp_path):
    paths = [folders(f"seed{seed}", seed, lambda it: it.update(device=f"machine {it['seed']}")) for seed in (0, 1, 2)]
    text, _ = render(paths, tmp_path)
    assert "3 folders have one configuration; their seeds could be put together: pool=true." in text
    text, page = render(paths, tmp_path, together=True)
    whole = summary.table(records.read(REAL))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:5] == "| all"]
    time = whole[0].index("time / BPTT")
    for row, expected in zip(rows, whole[1], strict=True):
        assert row[1:3] == [expected[0], "0, 1, 2"] and row[time + 2] == "-", "times of other machines are not pooled"
        assert [it for i, it in enumerate(row[3:], 1) if i != time] == [
            it for i, it in enumerate(expected[1:], 1) if i != time
        ]
    assert "machine 1" in text and "put together" in page


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda it: it["config"]["trainer"].update(learning_rate=0.5), "trainer.learning_rate: 0.004 and 0.5"),
        (lambda it: it.update(train_steps=7), "train_steps: 220 and 7"),
        (lambda it: it["config"]["task"].update(size=6), "task.size: 4 and 6"),
        (lambda it: it.update(commit="abc"), "so the code may differ"),
        (lambda it: it.update(seed=0), "seed 0 in both: the same seed says nothing new"),
        (lambda it: it.pop("config"), "records without their configuration"),
    ],
)
def test_what_is_not_comparable_is_not_put_together_and_it_says_why(folders, tmp_path, change, reason):
    paths = [folders("a", 0), folders("b", 1, change)]
    text, page = render(paths, tmp_path)
    assert "their seeds are kept apart" in text and reason.split(":")[0] in text and reason.split(":")[0] in page
    with pytest.raises(ConfigError, match="pool=true: .* cannot be put together: ") as caught:
        side_by_side.render(paths, tmp_path / "other", True, Console(quiet=True))
    assert reason in str(caught.value) and not (tmp_path / "other").exists()


@pytest.mark.parametrize("commit", ["unknown", "abc+changes"])
def test_a_commit_with_changes_or_unknown_keeps_seeds_apart(folders, commit):
    paths = [folders(str(seed), seed, lambda it: it.update(commit=commit)) for seed in (0, 1)]
    places = [Place(path.name, records.read(path / "records.jsonl")) for path in paths]
    assert reasons(*places, "bptt") == [f"commit: {commit}, so the code may differ"]


def test_estimators_that_one_folder_has_alone_are_no_difference(folders):
    whole = records.read(folders("a", 0) / "records.jsonl")
    places = [Place("a", whole), Place("b", [it for it in whole if it["estimator"] == "bptt"])]
    assert differences(places) == [] and len(same_task(places)) == 1


def test_folders_of_other_kinds_are_refused_by_name(tmp_path):
    for kind in ("deltas", "claims/gradient_scope/cpu"):
        paths = [REAL.parent, ROOT / "docs/results" / kind]
        with pytest.raises(ConfigError, match="comparisons and runs alone are set side by side"):
            side_by_side.render(paths, tmp_path / "both", False, Console(quiet=True))


def test_the_command_takes_folders_by_their_names(loopgrad, refused, tmp_path):
    paths = [str(ROOT / "docs/results/shortcuts" / number) for number in "01"]
    result = loopgrad("report", *paths, "output_dir=both")
    assert result.code == 0 and "differ in task, model" in result.out
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["report.html", "report.md"]
    assert "The tasks differ" in (tmp_path / "both" / "report.md").read_text()


def test_what_the_command_cannot_do_is_said_in_one_line(refused, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "records.jsonl").write_text("{}\n")
    both = f"folders=[{REAL.parent},{ROOT}/docs/results/shortcuts/1]"
    assert "output_dir=full: holds results of its own" in refused("report", both, "output_dir=full")
    assert "must be a list of 2 to 40 folders" in refused("report", f"folders=[{REAL.parent}]")
    assert "named twice" in refused("report", f"folders=[{REAL.parent},{REAL.parent}]")
    assert "none is given" in refused("report", "pool=true")
    assert "pool=3: must be true or false" in refused("report", both, "pool=3")
    assert "nowhere" in refused("report", f"folders=[{REAL.parent},nowhere]", "output_dir=new")
