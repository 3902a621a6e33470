"""Progress of data that are made: on a terminal, of this process, and nowhere else."""

import io
import multiprocessing
import sys
from contextlib import contextmanager

import pytest

from loopgrad.experiments.tasks import Sudoku, making


class Terminal(io.StringIO):
    def isatty(self):
        return True


@contextmanager
def terminal():
    with pytest.MonkeyPatch.context() as patch:  # within the test, for pytest sets the streams at its beginning
        patch.setattr(sys, "stderr", stream := Terminal())
        patch.setattr(making, "PATIENCE", 0.0)
        patch.setenv("TERM", "xterm")
        yield stream


def test_puzzles_are_counted_while_they_are_made():
    with terminal() as err:
        Sudoku(4, num_train=6, num_test=2).test_set()
    assert "Making 8 puzzles of size 4" in err.getvalue() and "100%" in err.getvalue()


def test_nothing_is_shown_before_it_has_taken_a_while(monkeypatch):
    with terminal() as err:
        monkeypatch.setattr(making, "PATIENCE", 1e9)
        Sudoku(4, num_train=6, num_test=2).test_set()
    assert "Making" not in err.getvalue()


def test_nothing_is_shown_by_workers_and_where_there_is_no_terminal(monkeypatch):
    with terminal() as err, monkeypatch.context() as patch:
        patch.setattr(multiprocessing, "parent_process", lambda: "a process")
        with making.shown("things", 3) as tell:
            tell(3)
    assert err.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", plain := io.StringIO())
    with making.shown("things", 3) as tell:
        tell(3)
    assert plain.getvalue() == ""
