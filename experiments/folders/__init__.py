"""The folder of a command's results: held by one process at a time, claimed by one configuration."""

from loopgrad.experiments.folders.claims import ANALYSIS, TRAINING, claimed, complete, held, output_folder

__all__ = ["ANALYSIS", "TRAINING", "claimed", "complete", "held", "output_folder"]
