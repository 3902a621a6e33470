"""What ends a command: one line on standard error and an exit code by kind, whoever raised it and however wrapped."""

import errno
import io
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch

from loopgrad.experiments import endings
from loopgrad.experiments.endings import cut_off, in_one_line, memory, on_signals
from loopgrad.experiments.errors import ConfigError, Interrupted, NonFinite, Signalled, WorkerLost


@pytest.fixture(autouse=True)
def signals_as_before():
    before = {number: signal.getsignal(number) for number in endings.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def wrapped(outer: Exception, inner: Exception, explicit: bool = True) -> Exception:
    try:
        try:
            raise inner
        except Exception as error:
            if explicit:
                raise outer from error
            raise outer  # noqa: B904
    except Exception as error:
        return error


def stopped_by(number: int) -> Interrupted:
    error = Interrupted("bptt-seed0", 3)
    error.signal = number
    return error


FULL = OSError(errno.ENOSPC, "No space left on device", "runs/checkpoint.pt")
ENDINGS = {
    "configuration": (ConfigError("task.size: no"), 2, "task.size: no"),
    "escapes and newlines": (ConfigError("a\nb\x1b[31m\x00\x85\u2028"), 2, r"a\nb\x1b[31m\x00\x85\u2028"),
    "not finite": (NonFinite("step 3"), 1, "the loss is not finite any more: step 3"),
    "worker": (WorkerLost("a worker was killed"), 1, "a worker was killed"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted; the same command goes on from the last checkpoint"),
    "SIGTERM": (Signalled(15), 143, "interrupted; the same command goes on from the last checkpoint"),
    "stored after SIGTERM": (stopped_by(15), 143, "interrupted; the same command goes on from the last checkpoint"),
    "full disk": (FULL, 3, "runs/checkpoint.pt: No space left on device; the same"),
    "full disk, file unknown": (OSError(errno.ENOSPC, "No space left on device"), 3, "No space left on device; the"),
    "file too large": (OSError(errno.EFBIG, "File too large"), 3, "File too large"),
    "wrapped by torch": (
        wrapped(RuntimeError("writer failed"), FULL, explicit=False),
        3,
        "runs/checkpoint.pt: No space",
    ),
    "wrapped by a library": (wrapped(ValueError("cannot save"), FULL), 3, "runs/checkpoint.pt: No space"),
    "folder gone": (FileNotFoundError(errno.ENOENT, "No such file or directory", "runs"), 3, "runs: No such file"),
    "a folder where a file goes": (
        IsADirectoryError(errno.EISDIR, "Is a directory", "x"),
        2,
        "x: Is a directory: move",
    ),
    "a file where a folder goes": (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"), 2, "x: Not a directory"),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "x"), 3, "x: Read-only file system"),
    "memory": (MemoryError(), 1, "out of memory: ask for smaller sizes"),
    "memory of numpy": (
        MemoryError("Unable to allocate 7.45 GiB for an array"),
        1,
        "out of memory: 7.45 GiB were asked",
    ),
    "memory of CUDA": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0"),
        1,
        "out of memory: 20.00 GiB were asked for",
    ),
    "memory for the error itself": (SystemError("error return without exception set"), 1, "out of memory"),
    "memory of Pillow": (OSError("codec configuration error when writing image file"), 1, "out of memory"),
    "memory of the system": (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "out of memory"),
    "memory that a library's clean-up hides": (
        wrapped(UnboundLocalError("cannot access local variable 'f'"), MemoryError(), explicit=False),
        1,
        "out of memory",
    ),
    "threads": (RuntimeError("can't start new thread"), 3, "the system starts no more threads"),
}


@pytest.mark.parametrize("kind", ENDINGS)
def test_an_ending_is_one_line_and_a_code(kind, capsys):
    error, code, line = ENDINGS[kind]
    with pytest.raises(SystemExit) as ended, in_one_line("train"):
        raise error
    assert ended.value.code == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(f"loopgrad: {line}")
    assert printed.err.count("\n") == 1 and printed.err[:-1].isprintable()


def test_torch_s_own_want_of_memory_is_told_with_its_size(capsys):
    with pytest.raises(SystemExit) as ended, in_one_line():
        torch.empty(2**60)
    assert ended.value.code == 1 and "out of memory: 4,398,046,511,104 MiB were asked for" in capsys.readouterr().err


def test_a_command_that_has_no_room_does_not_begin(capsys, monkeypatch):
    monkeypatch.setattr(memory, "ROOM", 2**38)  # MiB, more than there are addresses
    with pytest.raises(SystemExit) as ended, in_one_line("train"):
        print("begun")
    out, err = capsys.readouterr()
    assert ended.value.code == 1 and out == ""
    assert (
        err.startswith("loopgrad: out of memory: a command needs 274877906944 MiB beside what is loaded")
        and "ulimit" in err
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "ranks"), [([], {}), (["-m", "seed=0,1"], {}), ([], {"WORLD_SIZE": "1", "RANK": "0"})]
)
@pytest.mark.parametrize("most", [400, 500, 650, 860])  # MiB of address space, of which PyTorch takes 600
def test_room_is_asked_for_before_anything_large_is_loaded(tmp_path, more, ranks, most):
    asked = ["experiment=smoke", "output_dir=out"]
    command = [sys.executable, "-m", "loopgrad", "train", *more[:1], *asked, *more[1:]]
    ended = subprocess.run(
        command, cwd=tmp_path, env=os.environ | ranks, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (most * 2**20, most * 2**20)),
    )  # fmt: skip
    assert ended.returncode == 1 and ended.stdout == "" and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("loopgrad: out of memory: a command needs 832 MiB to begin with")


@pytest.mark.parametrize(
    "error", [TypeError("a bug"), KeyError("x"), RuntimeError("shapes"), wrapped(KeyError("x"), FULL, False)]
)
def test_a_mistake_of_the_program_is_shown_whole(error):
    with pytest.raises(type(error)), in_one_line("train"):
        raise error


def test_a_command_that_nobody_reads_ends_without_a_word(capsys):
    with pytest.raises(SystemExit) as ended, in_one_line("train"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe", endings.OUTPUT)
    assert ended.value.code == 141 and capsys.readouterr().err == ""


def test_what_was_printed_and_cannot_be_written_ends_the_command(monkeypatch, capsys):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device", endings.OUTPUT)

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(SystemExit) as ended, in_one_line():
        print("a table")
    assert ended.value.code == 3
    assert capsys.readouterr().err == "loopgrad: standard output: No space left on device\n"


def test_a_signal_lost_in_a_finaliser_comes_again():
    class Held:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Signalled), on_signals(cut_off):
        held = Held()
        del held
        while True:
            sum(range(1000))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    with on_signals(cut_off):
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("redirected", "code", "line"),
    [
        ("--help > /dev/full", 3, "loopgrad: standard output: No space left on device\n"),
        ("--help >&-", 3, "loopgrad: standard output: is closed; send it to /dev/null if it is not wanted\n"),
        ("--help 2>&- <&-", 0, ""),
        ("--help | head -c 1", 0, ""),
    ],
)
def test_standard_output_that_fails_is_told_in_one_line(redirected, code, line):
    program = f"{sys.executable} -m loopgrad {redirected}"
    ended = subprocess.run(program, shell=True, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (code, line)
