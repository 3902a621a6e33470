"""Commands that are stopped, or killed, in real processes: the same command then ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from loopgrad.experiments.processes import on_signal

CLI = "import sys; from loopgrad.experiments.cli import main; sys.argv[0] = 'loopgrad'; main()"
TINY = (
    "experiment=smoke model.hidden_size=16 model.num_heads=2 task.num_train=40 task.num_test=16 trainer.batch_size=8 "
    "trainer.eval_every=100 trainer.checkpoint_every=7 timing_repeats=1"
).split()


def begin(folder: Path, command: str, *overrides: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    arguments = [sys.executable, "-c", CLI, command, *TINY, *overrides]
    return subprocess.Popen(
        arguments, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen, code: int) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, (process.returncode, out, err)
    assert "Traceback" not in err
    return out, err


def wait_for_lines(path: Path, count: int) -> None:
    end = time.monotonic() + 60
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < end, f"{path} has no {count} lines"
        time.sleep(0.01)


def log(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def others_in(folder: Path) -> list[int]:
    """Return the ids of the processes that work in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").resolve() == folder.resolve():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_until_gone(folder: Path) -> None:
    end = time.monotonic() + 30
    while others_in(folder):
        assert time.monotonic() < end, "processes of a dead command go on"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["one_step", "random_truncation"])
def test_ctrl_c_leaves_a_checkpoint_from_which_training_goes_on_bit_identically(tmp_path, loopgrad, estimator):
    command = ["train", "trainer.train_steps=200", f"estimator={estimator}"]
    first = begin(tmp_path, *command, "output_dir=cut")
    run = tmp_path / "cut" / "runs" / f"{estimator}-seed0"
    wait_for_lines(run / "train.jsonl", 10)
    first.send_signal(signal.SIGINT)
    _, err = finish(first, 130)
    assert "the same command goes on" in err and err.count("\n") == 1
    stopped = len(log(run / "train.jsonl"))
    assert (
        10 <= stopped < 200 and (run / "checkpoint.pt").exists() and not (tmp_path / "cut" / "records.jsonl").exists()
    )
    for folder in ("cut", "whole"):
        assert loopgrad(*command, *TINY, f"output_dir={folder}").code == 0
    other = tmp_path / "whole" / "runs" / f"{estimator}-seed0"
    assert log(run / "train.jsonl") == log(other / "train.jsonl")
    assert (run / "weights.safetensors").read_bytes() == (other / "weights.safetensors").read_bytes()


def logs(folder: Path) -> dict[str, list[dict]]:
    return {path.parent.name: log(path) for path in sorted(folder.glob("runs/*/train.jsonl"))}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks processes up in /proc")
def test_a_comparison_cut_down_three_times_is_completed_by_the_same_command(tmp_path, loopgrad):
    command = ["compare", "trainer.train_steps=200", "estimator=[bptt,one_step]", "seeds=[0,1]"]
    out = tmp_path / "elsewhere" / "out"
    out.parent.mkdir()

    def cut_at(run: str, line: int) -> subprocess.Popen:
        process = begin(out.parent, *command, "workers=2", "output_dir=out")
        wait_for_lines(out / "runs" / run / "train.jsonl", line)
        return process

    process = cut_at("bptt-seed0", 9)
    process.send_signal(signal.SIGINT)
    finish(process, 130)
    wait_until_gone(out.parent)
    begun = logs(out)
    for name, lines in begun.items():  # every run that had begun has stored the step it was at
        stored = torch.load(out / "runs" / name / "checkpoint.pt", weights_only=True)
        assert stored["step"] == len(lines)

    process = cut_at("bptt-seed0", len(begun["bptt-seed0"]) + 9)
    workers = [pid for pid in others_in(out.parent) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    _, err = finish(process, 1)
    assert "its process was killed by SIGKILL" in err and err.count("\n") == 1
    wait_until_gone(out.parent)

    process = cut_at("one_step-seed1", 4)
    process.kill()
    finish(process, -signal.SIGKILL)
    wait_until_gone(out.parent)
    assert not (out / "records.jsonl").exists()

    for folder in (out, tmp_path / "whole"):
        assert loopgrad(*command, *TINY, "workers=1", f"output_dir={folder}").code == 0
    assert len((out / "records.jsonl").read_text().splitlines()) == 4
    assert logs(out) == logs(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_fails_stops_the_others_and_is_named(loopgrad):
    blown = ["trainer.train_steps=400", "trainer.learning_rate=1e30", "trainer.warmup_steps=0", "workers=2"]
    result = loopgrad("compare", *TINY, *blown, "estimator=[bptt,one_step]", "output_dir=out")
    assert result.code == 1 and result.err.count("\n") == 1 and "is not finite" in result.err
    assert "bptt-seed0" in result.err or "one_step-seed0" in result.err


def test_the_first_signal_asks_and_the_second_interrupts():
    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts without it
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with on_signal() as stop:
        assert not stop.requested
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    signal.signal(signal.SIGINT, found)
