"""The page of all claims, and each report, are what their committed records give."""

from importlib import resources

import pytest
from repository import ROOT

from loopgrad.experiments.records import ClaimRecord, read
from loopgrad.experiments.reports.claims import index
from loopgrad.experiments.reports.claims.verdicts import LEAST_SEEDS

SIZES = ("tiny", "cpu", "gpu")
RESULTS = ROOT / "docs/results/claims"
NAMES = sorted(
    path.name.removesuffix(".yaml")
    for path in (resources.files("loopgrad.experiments.conf") / "claim").iterdir()
    if path.name.endswith(".yaml")
)
RECORDS = sorted(RESULTS.glob("*/*/records.jsonl"))


def test_the_page_is_rendered_from_the_records():
    assert (ROOT / "docs/claims.md").read_text() == index(RESULTS, NAMES, SIZES, ROOT / "docs")


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.parts[-3])
def test_no_verdict_is_without_three_seeds(path):
    (record,) = read(path, ClaimRecord)
    assert record["claim"] == path.parts[-3] in NAMES and record["size"] == path.parts[-2]
    seeds = {}
    for run in record["trainings"]:
        seeds.setdefault(run["condition"], set()).add(run["seed"])
    assert all(len(it) >= LEAST_SEEDS for it in seeds.values())
    assert "+changes" not in record["commit"] and record["commit"] != "unknown"
