"""Where the streams of a model are read: at its cell, or at modules by name; `official_site` has a third place.

A site puts forward hooks on a model and tells a recorder of each start and each update; the model stays as it is.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from loopgrad.analysis.hooks import Arguments, is_forward, never_called, removed
from loopgrad.analysis.latent import Streams
from loopgrad.analysis.streams import version
from loopgrad.gradients.cell_call import check_cell, takes
from loopgrad.gradients.checks import is_int
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.invertible import undoing
from loopgrad.gradients.rows_going import rows_going


class Listener(Protocol):
    """What a site tells of starts and updates, such as a `Recorder`.

    Where it has an attribute `latent` that is not None, a site that reads states reads those leaves alone.
    """

    def start(self, /, **streams: torch.Tensor) -> None:
        """Hear of the state that the next update starts from."""

    def push(self, /, **streams: torch.Tensor) -> None:
        """Hear of an update, by the streams that it changed."""

    def going(self, rows: torch.Tensor) -> None:
        """Hear which samples the updates until the next start are of, (batch,) bool."""


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
    coupled cell z_t is read, not its copy. Samples that are done, by `lengths=` of an estimator, make no updates.

    Args:
        name: Qualified name of the cell. None for the only module whose forward takes (state, inputs, step); without
            one the model itself, or its only module, whose forward takes three arguments of other names.

    Not recommended when:
        The estimator searches for a fixed point instead of rolling out: read under torch.no_grad(), where every
        estimator rolls out. The look-ahead of Q-learning in training mode is a segment like others: read in eval mode.
    """

    name: str | None = None

    def cycle(self, model: nn.Module) -> int:
        """Return the period of the cell."""
        return period_of(self._cell(model))

    @contextmanager
    def reading(self, model: nn.Module, listener: Listener) -> Iterator[None]:
        """Tell of the cell's starts and updates inside the block."""
        cell, due, known, skipped = self._cell(model), None, Streams((), ()), None
        at, read = Arguments(cell), []

        def visible(state: Any) -> Any:
            own = undoing(cell)
            return state if own is None else own.current(own.couple(state))

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal due, known, skipped, read
            if not is_forward():
                return
            if (step := at.step(args, kwargs)) == 0:
                known = Streams.of(visible(at.get(args, kwargs, 0)), getattr(listener, "latent", None))
                due = 0
            elif skipped is None:
                skipped = step
            if step == due:  # noted now: a cell may fill the container of its state, or write into its tensors
                leaves = known.leaves(visible(at.get(args, kwargs, 0)))
                read = [(leaf, version(leaf)) for leaf in leaves]
                if step == 0:
                    listener.start(**dict(zip(known.names, leaves, strict=True)))

        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            nonlocal due
            if not is_forward() or due is None or at.step(args, kwargs) != due:
                return
            leaves = zip(known.names, known.leaves(visible(output)), read, strict=True)
            if (rows := rows_going()) is not None:
                listener.going(rows)
            listener.push(**{name: leaf for name, leaf, given in leaves if not _handed_on(leaf, *given)})
            due += 1

        handles = [cell.register_forward_pre_hook(before, with_kwargs=True)]
        handles += [cell.register_forward_hook(after, with_kwargs=True)]
        with removed(handles):
            yield
        if due is None and skipped is not None:
            raise RuntimeError(
                f"nothing was recorded: the cell, a {type(cell).__name__}, was called first at step={skipped}, and "
                "never at step=0, where a run begins: run it from there, or push the states of your loop"
            )
        if due is None:
            raise RuntimeError(never_called(f"the cell, a {type(cell).__name__}, at step 0,"))

    def _cell(self, model: nn.Module) -> nn.Module:
        if self.name is not None:
            cell = _module(model, self.name)
            check_cell(cell, f"CellSite({self.name!r})")
            return cell
        found = _outermost(model, is_named_cell)
        if not found:
            found = {"": model} if _takes_three(model) else _outermost(model, _needs_three)
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


def is_named_cell(module: nn.Module) -> bool:
    """Return whether the arguments of a module's forward are called (state, inputs, step)."""
    return Arguments(module).names == ["state", "inputs", "step"]


def _handed_on(leaf: torch.Tensor, given: torch.Tensor, written: int) -> bool:
    """Return whether a leaf is the one that was given, with nothing written into it as far as torch counts that."""
    return leaf is given and version(leaf) == written and not leaf.is_inference()


def _takes_three(module: nn.Module) -> bool:
    forward = getattr(module._modules.get("_orig_mod") or module, "forward", None)
    of_torch = str(getattr(forward, "__module__", "")).startswith("torch.")
    return forward is not None and not of_torch and takes(forward, 3)


def _needs_three(module: nn.Module) -> bool:
    return _takes_three(module) and not takes((module._modules.get("_orig_mod") or module).forward, 2)


def _outermost(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(outer == "" or name.startswith(f"{outer}.") for outer in found)
        if not inside and wanted(module):
            found[name] = module
    return found


def _module(model: nn.Module, name: str) -> nn.Module:
    known = dict(model.named_modules())
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise ValueError(f"the {type(model).__name__} has no module {name!r}; nearest names: {close}")
    return known[name]
