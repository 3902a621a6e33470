"""How a command begins and ends: signals, streams, want of memory, and one line and an exit code for any end."""

from loopgrad.experiments.endings.memory import check_room, lacks_memory, reserve
from loopgrad.experiments.endings.one_line import going_on, in_one_line
from loopgrad.experiments.endings.signals import (
    SIGNALS,
    cut_off,
    ignore_signals,
    leave,
    number_among_several,
    on_signals,
)
from loopgrad.experiments.endings.streams import OUTPUT, hold_streams

__all__ = [
    "OUTPUT",
    "SIGNALS",
    "check_room",
    "cut_off",
    "going_on",
    "hold_streams",
    "ignore_signals",
    "in_one_line",
    "lacks_memory",
    "leave",
    "number_among_several",
    "on_signals",
    "reserve",
]
