"""What a step takes before it is run anywhere: counted operator by operator on tensors without data.

Exactly what operators of the CPU allocate, under autocast and with the kernel of attention of a real run, whatever the
size. Blind to the scratch of an accelerator's kernels and to its allocator's rounding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    unset_fake_temporarily,
)
from torch.utils._pytree import tree_leaves

from loopgrad.analysis.counters import PeakBytes, flop_counter
from loopgrad.analysis.known_operators import KnownOperators

Made = TypeVar("Made")
# what torch raises where a value is asked for and there is none
UNKNOWN = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)
# so large that a storage holds a multiple of it, give or take what does not grow with the batch (4 GB at most)
BATCH = 10_000_000_019
_aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default
_OF_TANGENTS = (_aten._efficientzerotensor.default, _aten._to_copy.default)
_END = 2**62  # beyond which an int is the open end of a slice
_CPU, _META = torch.device("cpu"), torch.device("meta")


class Foreseen(NamedTuple):
    """What a step takes.

    Attributes:
        bytes: Most that are alive at once, beside what was made before.
        flops: Of matrix products, convolutions and attention, 2 per multiply-add.
    """

    bytes: int
    flops: int


def foreseen(make: Callable[[], Made], step: Callable[[Made], Any]) -> Foreseen:
    """Return what step(make()) takes; nothing is computed.

    Args:
        make: Makes modules and tensors on the CPU.
        step: Runs on them; its control flow must not depend on their values.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):  # what it makes stays without data outside of it
        made = make()
    with flop_counter() as flops, PeakBytes() as peak:
        step(made)
    return Foreseen(peak.peak, int(flops.get_total_flops()))


@dataclass(frozen=True)
class Growing:
    """Bytes that are alive at once, as they grow with the batch: the largest of some fixed + batch * each.

    Attributes:
        lines: Pairs (fixed, each), those that are the largest at some batch.
    """

    lines: tuple[tuple[int, int], ...]

    def at(self, batch: int) -> int:
        """Return the bytes of a batch."""
        return max((fixed + batch * each for fixed, each in self.lines), default=0)


def reason(error: BaseException) -> str:
    """Return in one line why a step was not foreseen, in words that do not tell of this file."""
    if isinstance(error, UNKNOWN):
        return (
            f"the cell asks for values of tensors ({error.args[0] if error.args else error}), and without data there "
            "are none: measure it on a small batch with loopgrad.analysis.measure, or keep such questions out of it"
        )
    return (str(error) or type(error).__name__).splitlines()[0].replace(str(BATCH), "batch")


def foreseen_by_batch(
    make: Callable[[int], Made], step: Callable[[Made], Any], number: float = math.inf
) -> tuple[Growing, Any]:
    """Return the peak of step(make(batch)) for any batch, counted once, and what the step returned.

    What the step asks of tensors is answered so that it goes on to its end: that all is well, that a residual is still
    large, that two tensors differ. Indices and masks that follow from no tensor without data have their values.

    Args:
        make: Makes modules and tensors of a batch.
        step: Runs on them, forward and backward.
        number: The answer where a floating number is asked for.
    """
    FakeTensorMode.cache_clear()  # torch 2.13 takes views of tangents for those of another step in its memory
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.random.fork_rng(devices=[]), mode:
        made = make(BATCH)
        with _ByBatch(mode, number) as counter:
            found = step(made)
    return Growing(counter.largest()), found


class _ByBatch(PeakBytes):
    """Follows fixed bytes and bytes per sample apart.

    Answers what is asked of a tensor without data: true, `number`, 0 of ints, and different from any other.
    """

    def __init__(self, mode: FakeTensorMode, number: float = math.inf) -> None:
        super().__init__()
        self._number = number
        self._known = KnownOperators(mode)
        self._now = (0, 0)
        self._most: dict[int, int] = {}  # by bytes per sample: the most fixed ones that were alive beside them

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE and isinstance(args[0], FakeTensor):  # what autograd asks most, of each tensor that it meets
            return args[0].fake_device
        if func is _aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            dtype = args[0].dtype
            return True if dtype == torch.bool else self._number if dtype.is_floating_point else 0
        if func is _aten.equal.default:
            if any(isinstance(argument, FakeTensor) for argument in args):
                return False
            with unset_fake_temporarily():
                return func(*args)
        return self.followed(func, args, kwargs or {})

    def called(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func in _OF_TANGENTS and kwargs.get("device") == _META:  # torch takes it from a zero that has no data either
            kwargs = {**kwargs, "device": _CPU}
        given = tree_leaves((args, kwargs))
        if _draws(func, args, kwargs) and not any(isinstance(it, torch.Generator) for it in given):
            with unset_fake_temporarily():
                torch.rand(())  # the generator moves on, as who asks whether random numbers were drawn will see
        tensors = [leaf for leaf in given if isinstance(leaf, torch.Tensor)]
        if any(isinstance(tensor, FakeTensor) for tensor in tensors):
            into = tensors[0]
            if func._schema.is_mutable and not isinstance(into, FakeTensor):  # a mask of what is not known stays
                return into
            return self._known(func, args, kwargs)
        if any(isinstance(leaf, torch.Generator) or (isinstance(leaf, int) and BATCH <= leaf < _END) for leaf in given):
            return self._known(func, args, kwargs)
        if not tensors:
            made = self._known(func, args, kwargs)
            if not isinstance(made, torch.Tensor) or made.is_floating_point() or made.is_complex():
                return made
        with unset_fake_temporarily():
            return func(*args, **kwargs)

    def allocated(self, size: int) -> None:
        self._count(size, 1)
        fixed, each = self._now
        if self._most.get(each, -1) < fixed:
            self._most[each] = fixed

    def freed(self, size: int) -> None:
        self._count(size, -1)

    def _count(self, size: int, sign: int) -> None:
        fixed, each = self._now
        grows = (size + BATCH // 2) // BATCH
        self._now = fixed + sign * (size - grows * BATCH), each + sign * grows

    def largest(self) -> tuple[tuple[int, int], ...]:
        """Return the pairs (fixed, each) of which no other has more of both."""
        found, most = [], -1
        for each, fixed in sorted(self._most.items(), reverse=True):
            if fixed > most:
                found.append((fixed, each))
                most = fixed
        return tuple(found)


def _draws(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether an operator draws random numbers: attention and recurrent layers do where they drop something."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]
    given = {it.name: it.default_value for it in func._schema.arguments} | dict(zip(names, args, strict=False)) | kwargs
    return given.get("train") is not False and 0 not in (given.get("dropout_p"), given.get("dropout"))
