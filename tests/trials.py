"""Commands as real processes, hundreds of them: each in a folder, within limits, with all that it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("trial_server.py")
TINY = (  # a comparison or a run that takes a second
    "experiment=smoke model.hidden_size=16 model.num_heads=2 task.num_train=40 task.num_test=16 trainer.train_steps=4 "
    "trainer.batch_size=8 trainer.eval_every=2 trainer.checkpoint_every=2"
).split()

NONE = [f"analysis.{name}_samples=0" for name in ("spectrum", "exponent", "gradient", "search")]
ANALYSE = ["analyse", "checkpoint=../trained", "analysis.samples=4", *NONE, "figures=0", "workers=1"]
# what tells one run of a command from another, and no result
OF_A_RUN = ("seconds", "train_seconds", "seconds_per_step", "time_ratio_to_bptt", "date", "command", "commit")


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: Exit code; minus the number of the signal that killed it; None if it ran past its time.
        out: Standard output.
        err: Standard error.
        most_bytes: Peak of resident memory.
        left: Command lines of processes that it left running.
    """

    code: int | None
    out: str
    err: str
    most_bytes: int
    left: tuple[str, ...]

    def in_one_line(self) -> bool:
        """Whether it succeeded silently, or said in one line of our own why not, and left no process."""
        if self.left or "Traceback" in self.out + self.err:
            return False
        if self.code == 0:
            return self.err == ""
        ours = self.err.startswith("loopgrad: ") and self.err.count("\n") == 1 and self.err.endswith("\n")
        return self.code is not None and self.code > 0 and ours


class Commands:
    """Runs commands one after the other, each a fork of one warm interpreter; a context manager.

    A command whose jobs go to several processes works as in a new interpreter too.
    """

    def __enter__(self) -> "Commands":
        reading, writing = os.pipe()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONFAULTHANDLER": ""}
        self._server = subprocess.Popen(
            [sys.executable, str(SERVER), str(writing)],
            stdin=subprocess.PIPE,
            pass_fds=[writing],
            env=environment,
        )
        os.close(writing)
        self._replies = os.fdopen(reading)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()
        self._replies.close()

    def address_space(self) -> int:
        """Return the bytes of address space that a command begins with."""
        lines = Path(f"/proc/{self._server.pid}/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmSize")).split()[1])

    def run(
        self,
        folder: Path,
        *arguments: Any,
        timeout: float = 240,
        limits: Mapping[str, int] | None = None,
        environment: Mapping[str, str] | None = None,
        out: str | None = None,
        crash_at: int | None = None,
        meanwhile: Callable[[int], None] = lambda pid: None,
    ) -> Outcome:
        """Run `loopgrad ARGUMENTS` in a folder to its end.

        Args:
            folder: Working folder.
            arguments: Of the command line.
            timeout: Seconds after which it is killed.
            limits: Names of resource limits, such as RLIMIT_FSIZE, and their values.
            environment: Variables set beside those of the test.
            out: Where standard output goes in place of a file that is read, such as /dev/full.
            crash_at: It is killed before the so many-th of its calls that change what is on the disk.
            meanwhile: Called with the process id as soon as it has begun, to disturb it.
        """
        streams = {name: folder.parent / f".{folder.name}.{name}" for name in ("out", "err")}
        for path in streams.values():
            path.unlink(missing_ok=True)
        request = {
            "folder": str(folder),
            "arguments": [str(argument) for argument in arguments],
            "timeout": timeout,
            "limits": dict(limits or {}),
            "environment": dict(environment or {}),
            "crash_at": crash_at,
            "out": out or str(streams["out"]),
            "err": str(streams["err"]),
        }
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        self._server.stdin.flush()
        pid = int(self._replies.readline())
        meanwhile(pid)
        code, most_bytes = json.loads(self._replies.readline())
        left = rest_of(pid)
        printed = {name: path.read_text(errors="replace") if path.exists() else "" for name, path in streams.items()}
        return Outcome(code, printed["out"], printed["err"], most_bytes, left)


def rest_of(session: int, patience: float = 5.0) -> tuple[str, ...]:
    """Return the command lines of a session's processes that do not end within `patience` seconds, and kill them."""
    end = time.monotonic() + patience
    while (found := in_session(session)) and time.monotonic() < end:
        time.sleep(0.02)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return tuple(found.values())


def in_session(session: int) -> dict[int, str]:
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in OF_A_RUN}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def contents(folder):
    """What must not depend on how often a command was killed, by the names of files."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".jsonl":
            lines = path.read_text().splitlines()
            found[str(path.relative_to(folder))] = [without_times(json.loads(line)) for line in lines]
        elif path.suffix == ".json" and path.name != "comparison.json":  # the figure's table holds times
            found[str(path.relative_to(folder))] = without_times(json.loads(path.read_text()))
        else:
            found[str(path.relative_to(folder))] = path.read_bytes() if path.suffix == ".safetensors" else None
    return found
