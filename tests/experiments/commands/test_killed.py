"""Commands killed at random moments, again and again: the same command ends as if it had never been cut off.

The number of kills may be raised: LOOPGRAD_KILLS=200 pytest -m slow -s tests/experiments/commands/test_killed.py
"""

import os
import random
import shutil
import signal
import threading

import pytest
from trials import ANALYSE, TINY, Commands, contents

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("LOOPGRAD_KILLS", "32"))
SMALL = [*TINY, "trainer.train_steps=40", "trainer.checkpoint_every=7", "trainer.weights_every=20", "timing_repeats=1"]
COMPARE = ["compare", *SMALL, "estimator=[one_step,last_cycle]", "seeds=[0,1]"]
FITS = "fits bench.L_cycles=[2] bench.H_cycles=[2,4] bench.hidden_size=16 bench.num_heads=2 bench.seq_len=9".split()
SUMS = (
    "rolling_sum bench.targets=[sum] bench.lengths=[6] bench.updates=[16] bench.hidden_size=5 bench.batch_size=4 "
    "bench.seeds=[0,1] bench.learning_rates=[0.01,0.02]"
).split()
CASES = {
    "train": ["train", *SMALL[:-1]],
    "compare": [*COMPARE, "workers=1"],
    "compare_2": [*COMPARE, "workers=2"],
    "analyse": [*ANALYSE, "figures=1"],
    "bench": ["bench", *FITS, "bench.num_layers=1"],
    "bench_validity": ["bench", "validity", "bench.lengths=[16,64]", "bench.radii=[0.5,0.7,0.8,0.9]"],
    "bench_trainings": ["bench", *SUMS, "bench.workers=1"],
}


@pytest.mark.parametrize("name", CASES)
def test_a_command_killed_at_random_moments_ends_as_if_it_had_never_been(tmp_path, name):
    draw, kills, rounds = random.Random(name), 0, 0
    with Commands() as commands:
        if name == "analyse":
            assert commands.run(tmp_path, "train", *SMALL[:-1], "output_dir=trained").code == 0
        (tmp_path / "whole").mkdir()
        assert commands.run(tmp_path / "whole", *CASES[name], "output_dir=out").code == 0
        expected = contents(tmp_path / "whole" / "out")
        place = tmp_path / "cut"
        while kills < KILLS // len(CASES):
            place.mkdir()
            rounds += 1
            ended = None
            while ended is None or ended.code == -signal.SIGKILL:
                longest = 4.0 if kills < KILLS // len(CASES) else None
                timers = []

                def kill(pid, longest=longest, timers=timers):
                    if longest is not None:
                        timers.append(threading.Timer(draw.uniform(0.05, longest), os.kill, (pid, signal.SIGKILL)))
                        timers[0].start()

                ended = commands.run(place, *CASES[name], "output_dir=out", meanwhile=kill)
                for timer in timers:
                    timer.cancel()
                kills += ended.code == -signal.SIGKILL
                assert ended.left == (), "a process of a killed command goes on"
            assert ended.code == 0 and ended.err == "", ended
            assert contents(place / "out") == expected
            shutil.rmtree(place)
    print(f"\n{name}: {kills} kills over {rounds} rounds; records and weights equal, no file and no process left")
