"""Worker processes: one that dies is named and stops no other, and none outlives the command that began it."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from trials import TINY, Commands, in_session, rest_of

from loopgrad.experiments.errors import ConfigError, WorkerLost
from loopgrad.experiments.processes import completed, mapped

pytestmark = pytest.mark.slow


def fate(job, tell, ended):
    """What a job asks for: a result, an error, or the end of its process."""
    if job == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "leave":
        os._exit(7)
    if job == "refuse":
        raise ConfigError("no such thing")
    tell(f"{job} is done")
    return job.upper()


def test_jobs_that_fail_or_die_are_told_and_stop_no_others():
    heard = []
    jobs = ["one", "segfault", "two", "refuse", "leave", "three"]
    endings = {it.job: it for it in completed(fate, jobs, 2, told=lambda job, what: heard.append(what))}
    assert {job: it.result for job, it in endings.items() if it.error is None} == {
        "one": "ONE",
        "two": "TWO",
        "three": "THREE",
    }
    assert sorted(heard) == ["one is done", "three is done", "two is done"]
    assert isinstance(endings["refuse"].error, ConfigError) and str(endings["refuse"].error) == "no such thing"
    assert isinstance(endings["segfault"].error, WorkerLost) and "SIGSEGV" in str(endings["segfault"].error)
    assert "exit code 7" in str(endings["leave"].error)


def shout(job):
    return fate(job, lambda _: None, None)


def test_results_come_in_the_order_of_jobs_and_a_death_names_its_job():
    assert mapped(shout, ["a", "b", "c"], 2) == ["A", "B", "C"]
    with pytest.raises(WorkerLost, match="segfault: its process was killed by SIGSEGV"):
        mapped(shout, ["a", "segfault"], 2)


def workers_of(session):
    return sum("spawn_main" in line for line in in_session(session).values())


@pytest.mark.parametrize("command", ["compare", "analyse"])
def test_no_process_outlives_a_command_that_is_killed_at_any_moment(tmp_path, command):
    """In new interpreters, whose workers load torch: the moments are those of the start too."""
    with Commands() as commands:
        assert commands.run(tmp_path, "train", *TINY, "seed=0", "output_dir=a").code == 0
        assert commands.run(tmp_path, "train", *TINY, "seed=1", "output_dir=b").code == 0
    begin = "import sys; sys.argv[0] = 'loopgrad'; from loopgrad.__main__ import main; main()"
    arguments = {
        "compare": ["compare", *TINY, "trainer.train_steps=4000", "workers=2", "seeds=[0]"],
        "analyse": ["analyse", "checkpoint=[a,b]", "analysis.samples=16", "workers=2"],
    }[command]
    draw, met = random.Random(0), 0
    for turn in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", begin, *arguments, f"output_dir=out{turn}"],
            cwd=tmp_path,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 60
        while turn % 2 and not workers_of(process.pid) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 2) if turn % 2 else draw.uniform(0.5, 6))
        met += workers_of(process.pid) > 0
        process.kill()
        process.wait()
        assert rest_of(process.pid, patience=1.0) == ()
    assert met >= 3, "there were no workers to outlive it, so that none is left proves nothing"
