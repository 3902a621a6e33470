"""Processes of a command: what asks it to stop, and workers that do its jobs."""

from loopgrad.experiments.processes.crew import Ending as Ending
from loopgrad.experiments.processes.crew import at_once as at_once
from loopgrad.experiments.processes.crew import completed as completed
from loopgrad.experiments.processes.crew import mapped as mapped
from loopgrad.experiments.processes.ranks import ALONE as ALONE
from loopgrad.experiments.processes.ranks import Ranks as Ranks
from loopgrad.experiments.processes.ranks import cut as cut
from loopgrad.experiments.processes.ranks import joined as joined
from loopgrad.experiments.processes.ranks import lost_ranks as lost_ranks
from loopgrad.experiments.processes.ranks import settle as settle
from loopgrad.experiments.processes.ranks import started as started
from loopgrad.experiments.processes.signals import Stop as Stop
from loopgrad.experiments.processes.signals import on_signal as on_signal
