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
from safetensors.torch import load_file
from trials import TINY

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("LOOPGRAD_KILLS", "10"))
STEPS = 60
SMALL = [*TINY, f"trainer.train_steps={STEPS}", "trainer.checkpoint_every=7", "trainer.weights_every=20"]
# a small rate: at a large one what is rounded otherwise grows as fast as training does
TRAIN = ["train", *SMALL, "trainer.learning_rate=1e-4", "estimator=last_cycle", "halting=q_halt", "output_dir=out"]
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
        path, end = self.folder / "out" / "runs" / "last_cycle-seed0" / "train.jsonl", time.monotonic() + BOUND
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


def results(folder: Path) -> tuple[list[dict], dict]:
    run = folder / "out" / "runs" / "last_cycle-seed0"
    log = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    return log, load_file(run / "weights.safetensors")


def assert_alike(folder: Path, other: Path) -> None:
    """What two folders hold differs by no more than rounding."""
    (log, weights), (its_log, its_weights) = results(folder), results(other)
    assert [entry["step"] for entry in log] == [entry["step"] for entry in its_log] == list(range(1, STEPS + 1))
    for entry, its in zip(log, its_log, strict=True):
        assert entry.keys() == its.keys()
        assert abs(entry["loss"] - its["loss"]) < 1e-5, entry["step"]
        assert (entry["finished"], entry["finished_segments"]) == (its["finished"], its["finished_segments"])
    for name, weight in weights.items():
        assert (weight - its_weights[name]).abs().max() < 2e-4, name  # Adam moves by its rate where gradients are zero
    assert (folder / "out" / "records.jsonl").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with the run of one process that nobody has disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    with Started(folder, 1, *TRAIN) as started:
        assert started.ended() == (0, [])
    return folder


def test_killed_at_random_moments_a_run_goes_on_on_any_number_of_processes(tmp_path, whole):
    draw, kills, sizes = random.Random("ranks"), 0, [2, 3, 1]
    while kills < KILLS:
        place, size, killed = tmp_path / str(kills), draw.choice([2, 3]), False
        with Started(place, size, *TRAIN) as started:
            if kills % 3:
                started.wait_for_step(draw.randrange(1, STEPS))
            else:  # before it trains, too
                time.sleep(draw.uniform(1.5, 9.0))
            alive = started.ranks()
            if alive:
                victim = draw.choice(sorted(alive))
                os.kill(alive[victim], signal.SIGKILL)
                killed = True
            code, lines = started.ended()
            assert code == (1 if killed else 0)
            assert len(lines) == killed, lines
        kills += 1
        with Started(place, sizes[kills % 3], *TRAIN) as started:
            assert started.ended() == (0, [])
        assert_alike(place, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
def test_a_signal_stops_all_ranks_at_one_step_with_its_checkpoint(tmp_path, whole, number):
    with Started(tmp_path, 2, *TRAIN) as started:
        started.wait_for_step(10)
        started.process.send_signal(number)
        code, lines = started.ended()
        assert code != 0 and lines == ["loopgrad: interrupted; the same command goes on from the last checkpoint"]
    import torch

    run = tmp_path / "out" / "runs" / "last_cycle-seed0"
    stored = torch.load(run / "checkpoint.pt", weights_only=True)
    assert stored["step"] == len((run / "train.jsonl").read_text().splitlines()) < STEPS
    assert len(stored["carry"]["carry.segment"]) == 8  # of the whole batch
    with Started(tmp_path, 3, *TRAIN) as started:
        assert started.ended() == (0, [])
    assert_alike(tmp_path, whole)


def test_ranks_whose_torchrun_is_gone_end_and_keep_their_step(tmp_path):
    with Started(tmp_path, 2, *TRAIN) as started:
        started.wait_for_step(10)
        started.process.kill()
        code, lines = started.ended()
        assert code == -signal.SIGKILL and len(lines) <= 1
    with Started(tmp_path, 1, *TRAIN) as started:
        assert started.ended() == (0, [])


REFUSED = {
    "misspelt": (["train", "trainer.train_stpes=3"], {}, "did you mean trainer.train_steps?"),
    "report": (["report"], {}, "report works in one process, and WORLD_SIZE=2: run it without torchrun"),
    "sweep": (["train", *SMALL, "-m", "seed=0,1"], {}, "start torchrun for each run"),
    "workers": (["compare", *SMALL, "workers=2"], {}, "workers=2: under torchrun all 2 processes share each run"),
    "rows": ([*TRAIN, "trainer.batch_size=3", "trainer.micro_batches=2"], {}, "need a row each, 4"),
    "blown": (
        [*TRAIN, "trainer.learning_rate=1e30", "trainer.warmup_steps=0"],
        {},
        "the loss is not finite any more: last_cycle-seed0, step 2: ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_said_once(tmp_path, name):
    arguments, environment, said = REFUSED[name]
    with Started(tmp_path, 2, *arguments, **environment) as started:
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
        assert one["curve"]["train_loss"] == pytest.approx(other["curve"]["train_loss"], abs=1e-5)
        assert one["exact_accuracy"] == other["exact_accuracy"]
