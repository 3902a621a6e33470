"""Commands killed right before a change that they make on the disk: the same command then ends as if never cut.

Every one of these changes in turn: LOOPGRAD_STRIDE=1 pytest -m slow -s tests/experiments/commands/test_crashes.py
"""

import json
import os
import re
import shutil

import pytest
from trials import ANALYSE, TINY, Commands, contents

from loopgrad.experiments.training.runs import LOGGED

pytestmark = pytest.mark.slow
SMALL = [*TINY, "trainer.train_steps=2", "trainer.checkpoint_every=1", "trainer.weights_every=1"]
TRAIN = ["train", *SMALL]
FITS = "fits bench.L_cycles=[2] bench.H_cycles=[2,4] bench.hidden_size=16 bench.num_heads=2 bench.seq_len=9".split()
CASES = {  # and every how many-th of its changes is one before which it is killed
    "train": (TRAIN, 13),
    "train_anew": ([*TRAIN, "restart=true"], 17),
    "compare": (["compare", *SMALL, "estimator=[one_step]", "seeds=[0]", "workers=1", "timing_repeats=1"], 23),
    "analyse": (ANALYSE, 4),
    "bench": (["bench", *FITS, "bench.num_layers=1"], 13),
}


@pytest.mark.parametrize("name", CASES)
def test_killed_before_any_change_on_the_disk_a_command_is_completed_by_itself(tmp_path, name):
    command, stride = CASES[name]
    stride = int(os.environ.get("LOOPGRAD_STRIDE", stride))
    with Commands() as commands:
        assert commands.run(tmp_path, *TRAIN, "output_dir=trained").code == 0
        (tmp_path / "before").mkdir()
        if name == "train_anew":  # over what another run has left, more of it than this one writes
            other = [*TRAIN, "trainer.train_steps=3", "logger=tensorboard"]
            assert commands.run(tmp_path / "before", *other, "output_dir=out").code == 0

        def run(place, **how):
            return commands.run(tmp_path / place, *command, "output_dir=out", **how)

        for place in ("whole", "cut"):
            shutil.copytree(tmp_path / "before", tmp_path / place)
        assert run("whole").code == 0
        expected, number, killed = contents(tmp_path / "whole" / "out"), 1, 0
        while (cut := run("cut", crash_at=number)).code:
            assert cut.code == -9
            rest = run("cut")
            assert rest.code == 0 and rest.err == "", rest
            assert contents(tmp_path / "cut" / "out") == expected
            shutil.rmtree(tmp_path / "cut")
            shutil.copytree(tmp_path / "before", tmp_path / "cut")
            number, killed = number + stride, killed + 1
        assert killed >= 3
    print(f"\n{name}: killed before {killed} of its changes on the disk, and completed each time")


@pytest.mark.parametrize("line", ["", "[]", '{"step": "2"}', '{"step": 2}', "\0" * 40])
def test_a_log_that_does_not_hold_what_its_checkpoint_counts_leaves_no_hole_in_the_curve(tmp_path, line):
    with Commands() as commands:
        for name in ("whole", "cut"):
            (tmp_path / name).mkdir()
            assert commands.run(tmp_path / name, *TRAIN, "output_dir=out").code == 0
        log = tmp_path / "cut" / "out" / "runs" / "last_cycle-seed0" / "train.jsonl"
        log.write_text(f"{log.read_text().splitlines()[0]}\n{line}\n")
        (tmp_path / "cut" / "out" / "records.jsonl").unlink()
        ended = commands.run(tmp_path / "cut", *TRAIN, "output_dir=out")
    assert ended.code == 0
    assert re.search("its log holds 1 of the 2 steps that its checkpoint counts, so the run begins anew", ended.out)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert all(json.loads(line).keys() >= LOGGED for line in log.read_text().splitlines())


def test_a_log_with_other_values_than_those_that_its_checkpoint_counts_is_not_gone_on_with(tmp_path):
    with Commands() as commands:
        for name in ("whole", "cut"):
            (tmp_path / name).mkdir()
            assert commands.run(tmp_path / name, *TRAIN, "output_dir=out").code == 0
        log = tmp_path / "cut" / "out" / "runs" / "last_cycle-seed0" / "train.jsonl"
        first, second = map(json.loads, log.read_text().splitlines())
        log.write_text(f"{json.dumps(first | {'loss': 0.5})}\n{json.dumps(second)}\n")
        (tmp_path / "cut" / "out" / "records.jsonl").unlink()
        ended = commands.run(tmp_path / "cut", *TRAIN, "output_dir=out")
    assert (
        ended.code == 0 and "its log holds other values than those that its checkpoint counts, so the run" in ended.out
    )
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
