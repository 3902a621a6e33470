"""A checkpoint of a whole run: weights, average, optimiser, carry, step and every random number generator."""

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loopgrad.analysis.files import replace_bytes
from loopgrad.experiments import records
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.processes import ALONE, Ranks
from loopgrad.experiments.tasks.base import IGNORE
from loopgrad.experiments.trainer.scaling import check_scale, put_scale
from loopgrad.experiments.training import random_states, shards, tensor_files
from loopgrad.experiments.training.loop import Run
from loopgrad.experiments.training.seeds import generators
from loopgrad.experiments.training.structure import misfit
from loopgrad.gradients import Estimator

FORMAT = 1


def save(path: Path, run: Run, estimator: Estimator, fingerprint: dict[str, Any], ranks: Ranks = ALONE) -> None:
    """Write a checkpoint atomically.

    Args:
        path: File to replace.
        run: What is stored.
        estimator: Whose generators are stored too.
        fingerprint: The configuration of the run, plain values; `load` refuses another one.
        ranks: Who trains it together; the first of them writes what all hold.
    """
    content = shards.on_first(_content(run, estimator, fingerprint), ranks)
    if ranks.first:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        replace_bytes(path, buffer.getvalue())


def _content(run: Run, estimator: Estimator, fingerprint: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "fingerprint": json.dumps(fingerprint, sort_keys=True),
        "step": run.step,
        "log": run.log,
        "model": run.model.state_dict(),
        "average": run.average.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "carry": run.carry.tensors(),
        "exploration": run.exploration.get_state(),
        "estimator": [generator.get_state() for generator in generators(estimator)],
        "generators": random_states.take(),
        **({} if run.scaler is None else {"scaler": run.scaler.state_dict()}),
        **({} if run.synthesiser is None else {"synthesiser": run.synthesiser.state_dict()}),
    }


def load(path: Path, run: Run, estimator: Estimator, fingerprint: dict[str, Any]) -> None:
    """Put a run, the estimator's generators and the global ones into the state of a checkpoint.

    All of it is checked against what `save` would write for this run before anything is put in place.

    Raises:
        ConfigError: The file is not a checkpoint of this version, or of a run with another configuration, or it does
            not hold what this run needs.
    """
    remedy = "delete it to begin this run anew"
    content = read(path, remedy)
    stored = fingerprint_of(content, path, remedy)
    if stored != json.loads(json.dumps(fingerprint)):
        changed = ", ".join(line[:200] for line in records.differences(stored, fingerprint)[:5])
        raise ConfigError(
            f"{path} belongs to another configuration ({changed}): choose another output_dir, or restart=true"
        )
    noise, states = generators(estimator), content.setdefault("estimator", [])  # older checkpoints have none
    if not isinstance(states, list) or len(states) != len(noise):
        raise ConfigError(f"{path} holds no state of the estimator's random numbers: {remedy}")
    content.setdefault("log", "")  # nor any of these
    try:
        _check(content, run, _content(run, estimator, fingerprint))
        for generator, state in zip(noise, states, strict=True):
            random_states.check_torch(state, generator.device)
    except ValueError as error:
        raise ConfigError(f"{path} does not hold the state of this run ({error}): {remedy}") from error
    _put(content, run, estimator)
    random_states.put(content["generators"])


def share(run: Run, estimator: Estimator, ranks: Ranks) -> None:
    """Put the runs of all ranks into the state of the first one's; its noise beside the estimator's stays its own."""
    if ranks.size > 1:
        content = ranks.share(_content(run, estimator, {}))
        if not ranks.first:
            _put(content, run, estimator)


def _put(content: dict[str, Any], run: Run, estimator: Estimator) -> None:
    run.step, run.log = content["step"], content["log"]
    run.model.load_state_dict(content["model"])
    run.average.load_state_dict(content["average"])
    # rates and decays are the configuration's, whatever the file says
    groups = run.optimizer.state_dict()["param_groups"]
    run.optimizer.load_state_dict({"state": content["optimizer"]["state"], "param_groups": groups})
    if run.scaler is not None:
        put_scale(run.scaler, content["scaler"])
    if run.synthesiser is not None:
        run.synthesiser.load_state_dict(content["synthesiser"])
    run.carry = run.carry.with_tensors(content["carry"])
    run.exploration.set_state(content["exploration"])
    for generator, state in zip(generators(estimator), content["estimator"], strict=True):
        generator.set_state(state)


def read(path: Path, remedy: str) -> dict[str, Any]:
    """Return what `save` wrote.

    Raises:
        ConfigError: The file is not a checkpoint of this version; the message ends in the remedy.
    """
    try:
        content = tensor_files.read(path)
        if not isinstance(content, dict) or "format" not in content:
            raise tensor_files.Unreadable("it is none that loopgrad wrote")
        version = content["format"]
        if isinstance(version, bool) or not isinstance(version, int):
            raise tensor_files.Unreadable("its format is no number")
    except tensor_files.Unreadable as error:
        raise ConfigError(f"{path} is not a checkpoint that can be read ({error}): {remedy}") from error
    if version != FORMAT:
        raise ConfigError(f"{path} has checkpoint format {version}, this version reads {FORMAT}")
    return content


def fingerprint_of(content: dict[str, Any], path: Path, remedy: str) -> dict[str, Any]:
    """Return the configuration that a checkpoint tells.

    Raises:
        ConfigError: It tells none.
    """
    try:
        found = json.loads(content["fingerprint"])
    except (KeyError, TypeError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} tells no configuration of its run: {remedy}")
    return found


def _check(content: dict[str, Any], run: Run, wanted: dict[str, Any]) -> None:
    """Raise ValueError if the content of a checkpoint is not what this run would have written at some step."""
    optimizer = content.get("optimizer")
    moments = optimizer.get("state") if isinstance(optimizer, dict) else None
    if isinstance(moments, dict):  # a run that has just begun has none yet, and a parameter without gradient never
        kept = {key: tensors for key, tensors in run.optimizer.kept().items() if key in moments}
        # what is beside the parameters' numbers comes from this run, so that it need not be there
        groups = wanted["optimizer"]["param_groups"]
        wanted = {**wanted, "optimizer": {"state": kept, "param_groups": groups}}
        content = {**content, "optimizer": {**optimizer, "param_groups": groups}}  # pyright: ignore[reportGeneralTypeIssues]
    if reason := misfit(content, wanted, passed=("fingerprint", "generators.cuda", "generators.python")):
        raise ValueError(reason)
    if content["step"] < 0:
        raise ValueError(f"step is {content['step']}")
    if run.scaler is not None:
        check_scale(content["scaler"])
    _check_carry(content["carry"], run)
    random_states.check_torch(content["exploration"], run.exploration.device)
    random_states.check(content["generators"])


def _check_carry(carry: dict[str, Tensor], run: Run) -> None:
    """Raise ValueError if a sample of the carry is none of the model's: a token would be read outside its table."""
    embedding = run.model.embedding
    symbols = embedding.vocab_size
    if symbols is None:
        return  # its encoder takes any tokens
    puzzles = embedding.puzzles.weight.shape[0] if embedding.puzzles is not None else 1
    limits = {"inputs": (0, symbols), "labels": (0, symbols), "puzzle_ids": (0, puzzles)}
    for name, (least, end) in limits.items():
        values = carry[f"carry.batch.{name}"]
        inside = (values >= least) & (values < end)
        if name == "labels":
            inside |= values == IGNORE
        if not inside.all():
            raise ValueError(f"carry.batch.{name} has numbers outside {least}..{end - 1}")
    if (carry["carry.segment"] < 0).any():
        raise ValueError("carry.segment has numbers below 0")
