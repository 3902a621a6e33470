"""A training step around a cell of the user's own, made of shapes: what `plan` foresees the bytes of."""

import copy
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from loopgrad.analysis.foreseen import BATCH, UNKNOWN, reason
from loopgrad.analysis.known_operators import NoRule, guarded
from loopgrad.analysis.plans import Planned, Step, planned
from loopgrad.analysis.sample_shapes import check_shapes_of, tensors_of
from loopgrad.gradients import BPTT, CheapestExact, CheckpointedBPTT, Estimator, Stats, TruncatedBPTT, tree
from loopgrad.gradients.budget import parse_bytes
from loopgrad.gradients.checks import is_int, is_number
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.graphs import is_floating

ESTIMATORS: Mapping[str, Estimator] = {
    "BPTT": BPTT(),
    "CheckpointedBPTT": CheckpointedBPTT(),
    "CheapestExact": CheapestExact("1GiB"),
    "last cycle": TruncatedBPTT(num_cycles=1),
}
MOST_OPERATORS = 3_000  # of updates that are traced one by one


def plan(
    cell: nn.Module | Callable[[], nn.Module],
    state: Any,
    inputs: Any,
    num_steps: int,
    memory_budget: int | str,
    *,
    xs: Any = None,
    estimators: Mapping[str, Estimator] = ESTIMATORS,
    batch_size: int = 1,
    copies: float = 3,
    autocast: torch.dtype | None = None,
) -> list[Planned]:
    """Return which estimators fit a memory budget, with what they take; nothing is run at these sizes.

    The step is the recursion, a mean of squares of its last state for a loss, and backward into parameters, and into
    inputs and state where they require grad. Operators are followed one by one on tensors without data, some 3000 calls
    of them; what longer recursions take follows from shorter ones, and what data or chance decide is taken at its most.
    Online gradients are tried before, for two cycles of four samples with data.

    Cost:
        Seconds of one core, whatever the sizes: some 0.2 ms for each operator of a traced update.
    Not recommended when:
        The cell's control flow depends on values, which is refused: measure it with `loopgrad.analysis.measure`.

    Args:
        cell: The cell, or what makes it, such as its class, called without tensors being allocated, unless it asks for
            their values.
        state: Tree of shapes of one sample, without the batch: tuples of ints, as (81, 512), which floating tensors
            have that require grad; or tensors with any data, of which shape, dtype and requires_grad are read.
        inputs: The same, or None.
        num_steps: Updates.
        memory_budget: Bytes in all, or a string such as "24GiB".
        xs: As `inputs`: what single updates read, one of each.
        estimators: By name. One that has a `memory_budget` gets what is left for the recursion.
        batch_size: At which bytes are told.
        copies: Of the weights, that lie beside: themselves and two moments of an optimiser. Gradients are in the step.
        autocast: To which dtype, of the CPU.

    Returns:
        Those that fit first, from the cheapest on.

    Raises:
        ValueError: An argument is out of range; the cell cannot be run on these shapes, or not without data.
        TypeError: `cell` is no module and makes none; a shape or an estimator is none.

    Example:
        >>> import torch
        >>> from loopgrad.analysis import plan
        >>> class Cell(torch.nn.Linear):
        ...     def forward(self, state, inputs, step):
        ...         return torch.tanh(super().forward(state) + inputs)
        >>> rows = plan(lambda: Cell(256, 256), (64, 256), (64, 256), num_steps=64, memory_budget="64MiB", batch_size=8)
        >>> [(row.name, row.evaluations) for row in rows if row.fits and row.kind == "exact"]
        [('BPTT', 64), ('CheapestExact', 65), ('CheckpointedBPTT', 128)]
    """
    budget = parse_bytes(memory_budget, "memory_budget={!r}")
    _check(estimators, num_steps, batch_size, copies, autocast)
    step = step_of(cell, state, inputs, num_steps, xs, copies, autocast)
    return planned(step, estimators, budget, batch_size)


def _check(estimators: Any, num_steps: Any, batch_size: Any, copies: Any, autocast: Any) -> None:
    if not isinstance(estimators, Mapping):
        raise TypeError(f"estimators must be a mapping of names, such as {{'BPTT': BPTT()}}, got {estimators!r}")
    for name, estimator in estimators.items():
        if not isinstance(estimator, Estimator):
            raise TypeError(f"estimators[{name!r}] must be an estimator, such as BPTT(), got {estimator!r}")
    for name, value in (("num_steps", num_steps), ("batch_size", batch_size)):
        if not is_int(value, 1):
            raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
    if not is_number(copies) or not 0 <= copies < math.inf:
        raise ValueError(f"copies must be a number of at least 0, got {copies!r}")
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise ValueError(f"autocast must be None, torch.bfloat16 or torch.float16, got {autocast!r}")


def step_of(
    cell: Any, state: Any, inputs: Any, num_steps: int, xs: Any, copies: float, autocast: torch.dtype | None
) -> Step:
    """Return the step of `plan`, once the cell has been seen to run through a cycle."""
    for name, shapes in (("state", state), ("inputs", inputs), ("xs", xs)):
        check_shapes_of(name, shapes)
    given, cell = cell, _followable(cell)

    def make(batch: int, updates: int) -> Any:
        return without_data(cell), tensors_of(state, batch), tensors_of(inputs, batch), tensors_of(xs, batch, updates)

    def with_data(batch: int, updates: int) -> Any:
        module = copy.deepcopy(given) if isinstance(given, nn.Module) else given()
        if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
            raise ValueError(
                "the cell has no data, for it is on the meta device, and online gradients are tried on data first: "
                "give what makes it, without torch.device('meta')"
            )
        made = tensors_of(state, batch), tensors_of(inputs, batch), tensors_of(xs, batch, updates)
        if not all(map(is_floating, tree.tensors(made[1:]))):
            raise ValueError(
                "which rows of a table the ints among inputs and xs look up is not known from shapes, and online "
                "gradients cost accordingly: measure them on a batch of yours with loopgrad.analysis.measure"
            )
        generator = torch.Generator().manual_seed(0)
        for leaf in filter(is_floating, tree.tensors(made)):
            leaf.detach().normal_(generator=generator)
        for weights in filter(lambda it: it.requires_grad, module.parameters()):  # what begins at 0 does not stay so
            noise = torch.randn(weights.shape, dtype=weights.dtype, generator=generator)
            weights.detach().add_(noise.to(weights.device), alpha=0.01)
        return module, *made

    def precision() -> Any:
        return nullcontext() if autocast is None else torch.autocast("cpu", autocast)

    def forward(made: Any, estimator: Estimator, num_steps: int) -> tuple[Tensor, Stats]:
        module, z, x, each = made
        with precision():
            rollout = estimator(module, z, x, num_steps, **({} if xs is None else {"xs": each}))
        floating = [leaf for leaf in tree.tensors(rollout.state) if is_floating(leaf)]
        return sum((leaf.float().square().mean() for leaf in floating), torch.zeros(())), rollout.stats

    found, mode = list[Any](), FakeTensorMode(allow_non_fake_inputs=True)

    def try_a_cycle(made: Any) -> None:
        module, z, x, each = made
        found.append(module)
        own = tree.map_tensors(lambda leaf: leaf[0], each)
        given = x if xs is None else own if x is None else (x, own)
        with precision(), _Operators(mode) as operators:
            for number in range(min(period_of(module), num_steps)):
                z = module(z, given, number)
        found.append(max(1, MOST_OPERATORS * period_of(module) // max(1, operators.count)))

    log = logging.getLogger("torch._subclasses.fake_tensor")
    silent = log.disabled
    try:
        log.disabled = True  # it would tell of each operator that fails, with a traceback
        with mode:
            try_a_cycle(make(BATCH, 1))
    except UNKNOWN as error:
        raise ValueError(reason(error)) from error
    except (_NoCell, MemoryError):
        raise
    except NoRule as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # whatever code of the caller's raises
        first = f"{reason(error)}: check state, inputs and xs" if found else reason(error)
        told = f"on these shapes: {first}" if found else f"where it is made: {first}"
        raise ValueError(f"the cell fails {told}") from error
    finally:
        log.disabled = silent
    module, most = found
    kept = sum(tensor.nbytes for tensor in module.buffers()) + round(
        copies * sum(p.nbytes for p in module.parameters())
    )
    return Step(make, forward, num_steps, period_of(module), kept, most, with_data)


def _followable(cell: Any) -> Any:
    """Return a cell, or what makes it without data; in place of that which cannot, the module that it makes.

    A factory that converts, as by `.bfloat16()`, makes one on the meta device, one that asks for values, as of
    `torch.linspace`, with data.
    """
    if isinstance(cell, nn.Module) or not callable(cell):
        return cell
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            cell()
        return cell
    except Exception as error:  # whatever code of the caller's raises: it is told where it is made once more
        if not isinstance(error, UNKNOWN) and "Couldn't swap" not in str(error):
            return cell
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return cell()
        except RuntimeError:
            return cell()


def without_data(cell: Any) -> nn.Module:
    """Return what `cell` makes, or a copy of it with new parameters and buffers of the CPU, within FakeTensorMode.

    Raises:
        TypeError: It is no module and makes none.
    """
    if not isinstance(cell, nn.Module):
        made = cell() if callable(cell) else cell
        if not isinstance(made, nn.Module):
            raise _NoCell(f"cell must be a module, or a class or function that makes one, got {type(made).__name__}")
        return made
    known = {}
    for tensor in (*cell.parameters(), *cell.buffers()):
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        is_weight = isinstance(tensor, nn.Parameter)
        known[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
    with unset_fake_temporarily():
        return copy.deepcopy(cell, known)


class _NoCell(TypeError):
    """What was given for a cell is none, and makes none."""


class _Operators(TorchDispatchMode):
    """Counts operators."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode, self.count = mode, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.namespace == "aten" and not func.is_view
        return guarded(self.mode, func, args, kwargs or {})
