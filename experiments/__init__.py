"""The top: tasks, trainer, records and the commands that run them, configured by Hydra."""

if not __name__.startswith("loopgrad."):
    raise ImportError("import loopgrad.experiments, not experiments: run `make setup` first")
