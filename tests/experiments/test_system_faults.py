"""Fifty trials of disks, folders, memory and outputs that fail: one line each; the same command then ends as ever."""

import json
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from trials import TINY, Commands, Outcome

QUICK = (*TINY, "estimator=[one_step]", "seeds=[0]", "workers=1", "timing_repeats=1")
ANALYSED = "checkpoint=../trained analysis=verdicts analysis.samples=4 analysis.gradient_samples=0 workers=1 figures=0"
ANALYSED += " analysis.extrapolate=1 analysis.lags=4 analysis.spectrum_samples=0 analysis.exponent_samples=0"
ANALYSED += " analysis.radius_samples=0 estimator=[one_step]"
SHORT = {
    "train": ("train", *TINY, "estimator=one_step", "output_dir=out"),
    "compare": ("compare", *QUICK, "output_dir=out"),
    "analyse": ("analyse", *ANALYSED.split(), "output_dir=out"),
    "bench": ("bench", "validity", "bench.lengths=[4]", "bench.radii=[0.5]", "bench.width=8", "output_dir=out"),
    "report": ("report", "output_dir=out"),
    "cite": ("cite",),
}
SIZES = (400, 2_000, 6_000, 20_000)  # bytes that a file may have, the one that standard error goes to as well
PASSING = (
    "date",
    "seconds",
    "versions",
    "command",
    "time_ratio",
    "commit",
    "output_dir",
    "checkpoint",
    "path",
    "bench",
    "ratio",
)


@pytest.fixture(scope="module")
def run():
    with Commands() as commands:
        yield commands


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory) -> Path:
    """Folders in which each command has run once, and the run that is analysed."""
    place = tmp_path_factory.mktemp("undisturbed")
    for name in ("train", "compare", "analyse", "bench", "report"):
        (place / name).mkdir()
    assert run.run(place, *SHORT["train"][:-1], "output_dir=trained").in_one_line()
    for name in ("train", "compare", "analyse", "bench"):
        assert (ended := run.run(place / name, *SHORT[name])).code == 0, ended
    shutil.copytree(place / "compare" / "out", place / "report" / "out")
    return place


def stable(value):
    """A record without what differs from run to run."""
    if isinstance(value, dict):
        return {k: stable(v) for k, v in value.items() if not any(word in k for word in PASSING)}
    return [stable(item) for item in value] if isinstance(value, list) else value


def results(folder: Path) -> dict[str, object]:
    """What a command left: bytes of weights, records without times, names of all files."""
    found: dict[str, object] = {"names": sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))}
    for path in folder.rglob("*"):
        if path.suffix == ".safetensors":
            found[path.name] = path.read_bytes()
        elif path.name == "records.jsonl":
            found[path.name] = [stable(json.loads(line)) for line in path.read_text().splitlines()]
    return found


def check(ended: Outcome, codes: set[int], about: object) -> None:
    assert ended.in_one_line() and ended.code in codes, (about, ended)


@pytest.mark.slow
@pytest.mark.parametrize("command", SHORT)
def test_a_command_that_the_system_refuses_says_so_and_goes_on_later(run, undisturbed, tmp_path, capsys, command):
    folder = tmp_path / "place" / "work"
    shutil.copytree(undisturbed / command, folder) if command == "report" else folder.mkdir(parents=True)
    if command == "analyse":
        (tmp_path / "place" / "trained").symlink_to(undisturbed / "trained")
    counts: Counter[int | None] = Counter()
    for size in SIZES:
        ended = run.run(folder, *SHORT[command], limits={"RLIMIT_FSIZE": size})
        check(ended, {0, 3}, size)
        counts[ended.code] += 1
    ended = run.run(folder, *SHORT[command], out="/dev/full")
    check(ended, {3}, "/dev/full")
    assert "standard output: No space left on device" in ended.err
    counts[3] += 1
    ended = run.run(
        folder,
        *SHORT[command],
        "trainer.batch_size=200000" if command == "train" else "hydra.verbose=false",
        limits={"RLIMIT_AS": 2**20},
    )
    check(ended, {0, 1, 2, 3}, "memory")
    counts[ended.code] += 1
    assert counts[3] > 1
    assert (ended := run.run(folder, *SHORT[command])).code == 0, ended
    if command != "cite":
        assert results(folder / "out") == results(undisturbed / command / "out")
    with capsys.disabled():
        print(f"\n{command}: exit codes of {sum(counts.values())} trials {dict(counts)}")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "compare", "analyse", "bench"])
def test_where_memory_runs_out_a_command_says_so_and_nothing_else(run, undisturbed, tmp_path, command):
    (tmp_path / "trained").symlink_to(undisturbed / "trained")
    large = {"bench": "bench.width=20000", "analyse": "figures=0"}.get(command, "model.hidden_size=6400")
    for margin in (0, 1.2, 3, 100, 270):  # MiB; where small objects find no room the interpreter would abort
        (folder := tmp_path / str(margin)).mkdir()
        most = {"RLIMIT_AS": run.address_space() + int(margin * 2**20)}
        ended = run.run(folder, *SHORT[command], *[large] * (margin > 200), limits=most)
        check(ended, {0, 1} if command == "analyse" and margin > 200 else {1}, margin)
        assert not ended.code or "out of memory" in ended.err or "starts no more threads" in ended.err, ended
        assert margin > 200 or ended.err.startswith("loopgrad: out of memory: a command needs 200 MiB beside"), ended
    assert run.run(folder, *SHORT[command]).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_folder_that_is_removed_ends_its_run(run, undisturbed, tmp_path, command):
    folder = tmp_path / "work"
    folder.mkdir()

    def remove(pid: int) -> None:
        end = time.monotonic() + 60
        while not (folder / "out/runs/one_step-seed0/checkpoint.pt").exists() and time.monotonic() < end:
            time.sleep(0.002)
        shutil.rmtree(folder / "out", ignore_errors=True)

    ended = run.run(folder, *SHORT[command], "trainer.train_steps=300", meanwhile=remove)
    check(ended, {3}, "removed")
    assert list(folder.rglob("*")) == [] and "was removed while the run went on" in ended.err
    assert run.run(folder, *SHORT[command]).code == 0
    assert results(folder / "out") == results(undisturbed / command / "out")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "compare", "analyse", "bench"])
def test_a_disk_that_is_full_or_read_only_ends_a_command(run, undisturbed, tmp_path, command):
    folder = tmp_path / "place" / "work"
    (folder / "out").mkdir(parents=True)
    if command == "analyse":
        (tmp_path / "place" / "trained").symlink_to(undisturbed / "trained")

    def mount(options: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder / "out")], capture_output=True
        )
        if done.returncode:
            pytest.skip("no file system may be mounted here")

    codes = []
    for options in ("size=4k", "size=40k", "size=1m,ro"):
        mount(options)
        try:
            ended = run.run(folder, *SHORT[command])
            check(ended, {0, 3} if "ro" not in options else {2, 3}, options)
            codes.append(ended.code)
        finally:
            subprocess.run(["umount", str(folder / "out")], check=True)
    assert 3 in codes
    assert run.run(folder, *SHORT[command]).code == 0
    assert results(folder / "out") == results(undisturbed / command / "out")
