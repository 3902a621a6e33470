"""Commands under torchrun: killed, interrupted and refused, with one line of ours, and gone on with on any number."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from trials import TINY

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("LOOPGRAD_KILLS", "3"))
STEPS = 60
SMALL = [*TINY, f"trainer.train_steps={STEPS}", "trainer.checkpoint_every=7", "trainer.weights_every=20"]
TRAIN = ["train", *SMALL, "estimator=last_cycle", "halting=q_halt", "output_dir=out"]
BOUND = 120


class Started:
    """torchrun in a folder, in a session of its own; a context manager that leaves no process."""

    def __init__(self, folder: Path, size: int, *arguments: str, **environment: str):
        folder.mkdir(exist_ok=True)
        self.folder = folder
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={size}", "--master_port=0"]
        torchrun += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", "-m", "loopgrad", *arguments]
        if size == 1:
            torchrun = [sys.executable, "-m", "loopgrad", *arguments]
        self.process = subprocess.Popen(
            torchrun, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [self.process.pid, *self.ranks().values()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.communicate()

    def ranks(self) -> dict[int, int]:
        """Return the processes that work in the folder and have a rank, by their rank."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdigit() or (entry / "cwd").resolve() != self.folder.resolve():
                    continue
                variables = dict(item.split("=", 1) for item in (entry / "environ").read_text().split("\0") if item)
            except (OSError, ValueError):
                continue
            if "RANK" in variables and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found[int(variables["RANK"])] = int(entry.name)
        return found

    def wait_for_step(self, count: int) -> None:
        path, end = run_of(self.folder) / "train.jsonl", time.monotonic() + BOUND
        while self.process.poll() is None and (not path.exists() or path.read_text().count("\n") < count):
            assert time.monotonic() < end
            time.sleep(0.01)

    def ended(self) -> tuple[int, list[str]]:
        """Return the exit code and our lines, of which there is none but on standard error; nothing goes on."""
        out, err = self.process.communicate(timeout=BOUND)
        end = time.monotonic() + 10
        while self.ranks() and time.monotonic() < end:
            time.sleep(0.05)
        assert not self.ranks(), "a process goes on"
        ours = err.split("E1127")[0] if self.process.returncode else err
        assert "/loopgrad/" not in ours and "experiments/" not in err, err  # no traceback of ours
        self.out = out
        return self.process.returncode, [line for line in err.splitlines() if line.startswith("loopgrad: ")]


def run_of(folder: Path) -> Path:
    return folder / "out" / "runs" / "last_cycle-seed0"


def log_of(folder: Path) -> list[dict]:
    lines = (run_of(folder) / "train.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def stored_step(folder: Path) -> int:
    path = run_of(folder) / "checkpoint.pt"
    return torch.load(path, weights_only=True)["step"] if path.exists() else 0


def assert_gone_on(folder: Path, size: int, whole: Path, its_size: int, step: int) -> None:
    """The run in a folder, from a step on continued on so many processes, is the one that was never cut.

    On another number of processes sums are rounded otherwise, which the recursion makes grow: by 1e-6 in two steps, by
    the size of the loss in dozens.
    """
    log, expected = log_of(folder), log_of(whole)
    assert [entry["step"] for entry in log] == list(range(1, STEPS + 1))
    equal = STEPS if size == its_size else step
    assert log[:equal] == expected[:equal]
    for entry, its in zip(log[step : step + 3], expected[step : step + 3], strict=True):
        assert entry.keys() == its.keys() and abs(entry["loss"] - its["loss"]) < 1e-4, entry["step"]
    if size == its_size:
        weights = [(run_of(place) / "weights.safetensors").read_bytes() for place in (folder, whole)]
        assert weights[0] == weights[1]
    assert (folder / "out" / "records.jsonl").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folders with a run that nobody has disturbed, by the number of its processes."""
    found = {}

    def of(size: int) -> Path:
        if size not in found:
            found[size] = tmp_path_factory.mktemp("whole")
            with Started(found[size], size, *TRAIN) as started:
                assert started.ended() == (0, [])
        return found[size]

    return of


def test_killed_at_random_moments_a_run_goes_on_on_any_number_of_processes(tmp_path, whole):
    draw, killed = random.Random("ranks"), 0
    for number in range(KILLS):
        place, size, gone_on = tmp_path / str(number), 2 + number % 2, 1 + number // 2 % 3
        with Started(place, size, *TRAIN) as started:
            if number % 5:
                started.wait_for_step(draw.randrange(1, STEPS))
            else:  # before it trains, too
                time.sleep(draw.uniform(0.5, 6.0))
            alive = started.ranks()
            if alive:
                os.kill(alive[draw.choice(sorted(alive))], signal.SIGKILL)
            code, lines = started.ended()
            # a process that is killed while it loads has nobody yet to tell of it but torchrun
            assert len(lines) == (code != 0) if number % 5 else len(lines) <= (code != 0), lines
            killed += code != 0
        step = stored_step(place)
        with Started(place, gone_on, *TRAIN) as started:
            assert started.ended() == (0, [])
        assert_gone_on(place, gone_on, whole(size), size, step)
    aimed = sum(number % 5 > 0 for number in range(KILLS))  # the others may come before there is a process to kill
    assert killed >= 0.7 * aimed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
def test_a_signal_stops_all_ranks_at_one_step_with_its_checkpoint(tmp_path, whole, number):
    with Started(tmp_path, 2, *TRAIN) as started:
        started.wait_for_step(10)
        started.process.send_signal(number)
        code, lines = started.ended()
        assert code != 0 and lines == ["loopgrad: interrupted; the same command goes on from the last checkpoint"]
    stored = torch.load(run_of(tmp_path) / "checkpoint.pt", weights_only=True)
    assert stored["step"] == len(log_of(tmp_path)) < STEPS
    assert len(stored["carry"]["carry.segment"]) == 8  # of the whole batch
    with Started(tmp_path, 3, *TRAIN) as started:
        assert started.ended() == (0, [])
    assert_gone_on(tmp_path, 3, whole(2), 2, stored["step"])


def test_ranks_whose_torchrun_is_gone_end_and_keep_their_step(tmp_path):
    with Started(tmp_path, 2, *TRAIN) as started:
        started.wait_for_step(10)
        started.process.kill()
        code, lines = started.ended()
        assert code == -signal.SIGKILL and len(lines) <= 1
    with Started(tmp_path, 1, *TRAIN) as started:
        assert started.ended() == (0, [])


def test_a_process_that_shares_the_weights_is_killed_and_three_go_on(tmp_path, whole):
    shared, expected = [*TRAIN, "trainer.shard=fsdp2"], log_of(whole(2))
    with Started(tmp_path, 2, *shared) as started:
        started.wait_for_step(10)
        os.kill(started.ranks()[1], signal.SIGKILL)
        code, lines = started.ended()
        assert code != 0 and len(lines) == 1 and "one of the processes of this run has ended" in lines[0], lines
    step = stored_step(tmp_path)
    assert 7 <= step < STEPS
    with Started(tmp_path, 3, *shared) as started:
        assert started.ended() == (0, [])
    log = log_of(tmp_path)
    assert [entry["step"] for entry in log] == list(range(1, STEPS + 1))
    for entry, its in zip(log[:3], expected[:3], strict=True):
        assert entry.keys() == its.keys() and abs(entry["loss"] - its["loss"]) < 1e-5, entry["step"]
    # roundings have grown by here; a lost average or moment would be far more
    assert abs(log[step]["loss"] - expected[step]["loss"]) < 0.1
    assert (tmp_path / "out" / "records.jsonl").exists()


REFUSED = {
    "misspelt": (["train", "trainer.train_stpes=3"], "did you mean trainer.train_steps?"),
    "blown": ([*TRAIN, "trainer.learning_rate=1e30", "trainer.warmup_steps=0"], "is not finite any more: last_cycle"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_said_once(tmp_path, name):
    arguments, said = REFUSED[name]
    with Started(tmp_path, 2, *arguments) as started:
        code, lines = started.ended()
    assert code == 1 and started.out.strip() == "" and len(lines) == 1 and said in lines[0], lines


def test_a_comparison_is_that_of_one_process(tmp_path):
    arguments = ["compare", *TINY, "estimator=[one_step,last_cycle]", "seeds=[0]", "timing_repeats=1", "output_dir=out"]
    for size in (1, 2):
        with Started(tmp_path / str(size), size, *arguments) as started:
            assert started.ended() == (0, [])
            assert started.out.count("step     4") == 2
    records = [(tmp_path / str(size) / "out" / "records.jsonl").read_text().splitlines() for size in (1, 2)]
    for one, other in zip(*(map(json.loads, lines) for lines in records), strict=True):
        assert one.keys() == other.keys() and one["config"] == other["config"]
        pairs = zip(one["curve"]["train_loss"], other["curve"]["train_loss"], strict=True)
        for step, (mine, theirs) in enumerate(pairs):  # Adam multiplies what float32 rounds
            assert mine == pytest.approx(theirs, abs=1e-7 * 10**step)
        assert one["exact_accuracy"] == other["exact_accuracy"]
