"""Hydra configuration groups of the commands: task, model, estimator, trainer, experiment, bench."""
