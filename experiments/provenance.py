"""What a record needs so that its run can be repeated: commit, versions, device, command."""

import datetime
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import loopgrad

LIBRARIES = ("torch", "numpy", "scipy", "hydra-core", "safetensors")


def stamp() -> dict[str, Any]:
    """Return commit, versions, date and command; taken when a command begins, before anyone can change the files."""
    today = datetime.date.today().isoformat()
    return {"commit": commit(), "versions": versions(), "date": today, "command": command()}


def commit() -> str:
    """Return the git commit the package is run from, with "+changes" where files differ from it; else "unknown"."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        call = ["git", "-C", str(folder), *arguments]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("ls-files", "--error-unmatch", "provenance.py")).name != "provenance.py":
            return "unknown"
        return git("rev-parse", "HEAD")[:12] + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of the libraries it computes with."""
    found = {"python": platform.python_version(), "loopgrad": loopgrad.__version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def device_name(device: torch.device) -> str:
    """Return the device in words: the GPU's name, or the processor, its cores and torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"{_processor()}, {torch.get_num_threads()} of {torch.multiprocessing.cpu_count()} cores"


def command() -> str:
    """Return the command line as typed, with the program's name in place of its path."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
