"""Where the streams of a model are read: at its cell, or at modules by name; `official_site` has a third place.

A site puts forward hooks on a model and tells a recorder of each start and each update; the model stays as it is.
"""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from loopgrad.analysis.hooks import argument, is_forward, never_called, removed
from loopgrad.analysis.streams import state_leaves, stream_names
from loopgrad.gradients import tree
from loopgrad.gradients.checks import is_int
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.invertible import is_invertible


class Listener(Protocol):
    """What a site tells of starts and updates, such as a `Recorder`."""

    def start(self, /, **streams: torch.Tensor) -> None:
        """Hear of the state that the next update starts from."""

    def push(self, /, **streams: torch.Tensor) -> None:
        """Hear of an update, by the streams that it changed."""


class Site(Protocol):
    """Where the streams of a model are read; write your own for a model that no class here knows."""

    def cycle(self, model: nn.Module) -> int:
        """Return the number of updates in a cycle of `model`."""
        ...

    def reading(self, model: nn.Module, listener: Listener) -> Any:
        """Return a context in which calls of `model` are told to `listener`, and which takes its hooks away."""
        ...


@dataclass(frozen=True)
class CellSite:
    """Reads the updates of a cell, a module called as cell(state, inputs, step) -> state, wherever it is in the model.

    A call with step 0 starts a segment, from the state it is given; calls with steps 1, 2, ... go on. Other calls are
    evaluations that an estimator makes beside the rollout, and what backward computes again is not read either. Of a
    coupled cell z_t is read, not its copy.

    Args:
        name: Qualified name of the cell; None for the only module whose forward takes (state, inputs, step).

    Not recommended when:
        The estimator searches for a fixed point instead of rolling out, or tries updates beforehand
        (CheckpointedBPTT with a memory budget): read under torch.no_grad(), where every estimator rolls out. The
        look-ahead of Q-learning in training mode is a segment like others: read in eval mode.
    """

    name: str | None = None

    def cycle(self, model: nn.Module) -> int:
        """Return the period of the cell."""
        return period_of(self._cell(model))

    @contextmanager
    def reading(self, model: nn.Module, listener: Listener) -> Iterator[None]:
        """Tell of the cell's starts and updates inside the block."""
        cell, due, names = self._cell(model), None, ()

        def visible(state: Any) -> Any:
            return cell.current(cell.couple(state)) if is_invertible(cell) else state

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal due, names
            if is_forward() and argument(args, kwargs, 2, "step") == 0:
                state = visible(argument(args, kwargs, 0, "state"))
                names = stream_names(state)
                listener.start(**dict(zip(names, state_leaves(state, names), strict=True)))
                due = 0

        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            nonlocal due
            if not is_forward() or due is None or argument(args, kwargs, 2, "step") != due:
                return
            old, new = visible(argument(args, kwargs, 0, "state")), state_leaves(visible(output), names)
            leaves = zip(names, new, tree.flatten(old)[0], strict=True)
            listener.push(**{name: leaf for name, leaf, given in leaves if leaf is not given})
            due += 1

        handles = [cell.register_forward_pre_hook(before, with_kwargs=True)]
        handles += [cell.register_forward_hook(after, with_kwargs=True)]
        with removed(handles):
            yield
        if due is None:
            raise RuntimeError(never_called(f"the cell, a {type(cell).__name__}, at step 0,"))

    def _cell(self, model: nn.Module) -> nn.Module:
        if self.name is not None:
            return _module(model, self.name)
        found: dict[str, nn.Module] = {}
        for name, module in model.named_modules():
            inside = any(outer == "" or name.startswith(f"{outer}.") for outer in found)
            if not inside and _is_cell(module):
                found[name] = module
        if len(found) != 1:
            raise ValueError(
                f"CellSite needs one module in the {type(model).__name__} whose forward takes (state, inputs, step), "
                f"found {sorted(found) or 'none'}: "
                + ("give its name, CellSite('...')" if found else "read outputs of modules by ModuleSite")
            )
        return next(iter(found.values()))


@dataclass(frozen=True)
class ModuleSite:
    """Reads the outputs of modules, by their qualified names: each call of one is an update of its stream.

    Reading begins when every stream has been seen once; that is the initial state. All calls in one block of
    `Recorder.attach` are one run: enter a new block for a new run.

    Args:
        outputs: Qualified name of a module -> name of its stream.
        pick: Callable that takes a module's output and returns the stream's tensor (batch, ...); None if it is that.
        period: Number of updates in a cycle, of all streams together.

    Example:
        >>> import torch
        >>> from loopgrad.analysis.recorder import Recorder
        >>> from loopgrad.analysis.sites import ModuleSite
        >>> rnn, recorder = torch.nn.RNNCell(2, 3), Recorder()
        >>> with recorder.attach(rnn, ModuleSite({"": "h"})):
        ...     h = rnn(torch.ones(4, 2), rnn(torch.ones(4, 2)))
        >>> recorder.trace().update["h"].shape
        (1, 4)
    """

    outputs: Mapping[str, str]
    pick: Callable[[Any], torch.Tensor] | None = None
    period: int = 1

    def __post_init__(self) -> None:
        """Check that there is something to read."""
        if not self.outputs or len(set(self.outputs.values())) < len(self.outputs):
            raise ValueError(f"outputs must name modules and a stream of its own for each, got {dict(self.outputs)}")
        if not is_int(self.period, 1):
            raise ValueError(f"period must be the number of updates in a cycle, at least 1, got {self.period!r}")

    def cycle(self, model: nn.Module) -> int:
        """Return `period`."""
        return self.period

    @contextmanager
    def reading(self, model: nn.Module, listener: Listener) -> Iterator[None]:
        """Tell of the outputs of the modules inside the block."""
        first: dict[str, torch.Tensor] = {}
        started = False

        def after(stream: str, output: Any) -> None:
            nonlocal started
            if not is_forward():
                return
            tensor = output if self.pick is None else self.pick(output)
            if started:
                listener.push(**{stream: tensor})
                return
            first[stream] = tensor
            if len(first) == len(self.outputs):
                started = True
                listener.start(**{name: first[name] for name in self.outputs.values()})

        handles = [
            _module(model, name).register_forward_hook(lambda *given, stream=stream: after(stream, given[-1]))
            for name, stream in self.outputs.items()
        ]
        with removed(handles):
            yield
        unseen = [name for name, stream in self.outputs.items() if stream not in first]
        if unseen:
            raise RuntimeError(never_called(f"{unseen}"))


def _is_cell(module: nn.Module) -> bool:
    module = module._modules.get("_orig_mod") or module  # of a compiled cell, which runs its hooks outside
    try:
        return list(inspect.signature(module.forward).parameters)[:3] == ["state", "inputs", "step"]
    except (TypeError, ValueError):  # a forward that is not Python's
        return False


def _module(model: nn.Module, name: str) -> nn.Module:
    known = dict(model.named_modules())
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise ValueError(f"the {type(model).__name__} has no module {name!r}; nearest names: {close}")
    return known[name]
