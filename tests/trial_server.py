"""A warm interpreter that begins commands: it has imported everything, and each is a fork of it, as fresh as a new one.

Run as a program by `trials.Commands`; a request is a line of JSON on its standard input.
"""

import json
import os
import resource
import sys
import time


def next_command(replies: int) -> None:
    """Serve requests for ever; return in the process of a command, its streams, limits and folder as requested."""
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        pid = os.fork()
        if not pid:
            os.setsid()  # so that what it leaves behind is known by its session
            os.chdir(asked["folder"])
            for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, asked["out"], 1), (2, asked["err"], 1)):
                os.dup2(os.open(path, flags if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            for name, limit in asked["limits"].items():
                resource.setrlimit(getattr(resource, name), (limit, limit))
            os.environ.update(asked["environment"])
            sys.stdin = open(0)  # the old one holds what its buffer had read ahead
            sys.argv = ["loopgrad", *asked["arguments"]]
            if asked["crash_at"] is not None:
                crash_at(asked["crash_at"])
            return
        os.write(replies, b"%d\n" % pid)
        end = time.monotonic() + asked["timeout"]
        while True:
            ended, status, used = os.wait4(pid, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > end:
                os.killpg(pid, 9)
                _, status, used = os.wait4(pid, 0)
                status = None
                break
            time.sleep(0.002)
        code = None if status is None else os.waitstatus_to_exitcode(status)
        os.write(replies, json.dumps([code, used.ru_maxrss * 1024]).encode() + b"\n")
    raise SystemExit


def crash_at(number: int) -> None:
    """Kill this process right before the so many-th call that changes what is on the disk."""
    left = [number]

    def guarded(change):
        def call(*args, **kwargs):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), 9)
            return change(*args, **kwargs)

        return call

    for name in ("replace", "fsync", "unlink", "rmdir", "mkdir", "open"):
        setattr(os, name, guarded(getattr(os, name)))


if __name__ == "__main__":
    import importlib
    import pkgutil

    import loopgrad.analysis.plots
    import loopgrad.experiments.commands
    import loopgrad.experiments.reports
    import loopgrad.experiments.tasks

    rooms = loopgrad.experiments.commands, loopgrad.experiments.reports, loopgrad.experiments.tasks
    for room in rooms:
        for found in pkgutil.iter_modules(room.__path__):
            importlib.import_module(f"{room.__name__}.{found.name}")
    next_command(replies=int(sys.argv[1]))
    from loopgrad.__main__ import main

    main()
