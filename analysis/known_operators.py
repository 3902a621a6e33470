"""What operators return on tensors without data, known from the first call with tensors of such shapes.

torch's own memory of it, that of FakeTensorMode, takes most of the time in which a step is foreseen.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import UnsupportedOperatorException, unset_fake_temporarily
from torch.utils._pytree import tree_leaves

_VALUES = (int, float, bool, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))
_UNFORESEEABLE = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output, torch.Tag.inplace_view}
_CPU = torch.device("cpu")
_MOST_NUMBERS = 2**26
_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default, _aten.mv.default}


@dataclass(frozen=True)
class _Form:
    """What a result is: a new tensor, or a view of the first argument."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int | torch.SymInt
    is_view: bool


class KnownOperators:
    """Calls operators; those that make one tensor, or one view, are called once for each kind of arguments.

    Dense real tensors of the CPU alone; anything else is handed on.

    Args:
        mode: Of the tensors.
    """

    def __init__(self, mode: FakeTensorMode):
        self._mode = mode
        self._forms: dict[Any, _Form | None] = {}
        self._simple: dict[Any, bool] = {}

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return func(*args, **kwargs)."""
        key = self._key(func, args, kwargs)
        form = self._forms.get(key) if key is not None else None
        if form is not None:
            return self._made(form, args)
        found = guarded(self._mode, func, args, kwargs)
        if key is not None and key not in self._forms:
            self._forms[key] = _form(func, args, found)
        return found

    def _key(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func not in self._simple:
            self._simple[func] = _is_simple(func)
        if not self._simple[func]:
            return None
        parts: list[Any] = [func, torch.get_default_dtype(), torch.is_inference_mode_enabled()]
        return tuple(parts) if _described(args, parts) and _described(kwargs.items(), parts) else None

    def _made(self, form: _Form, args: Any) -> Tensor:
        with unset_fake_temporarily():
            if form.is_view:
                made = torch.empty(0, dtype=form.dtype, device="meta")
                made.set_(args[0].untyped_storage(), form.offset, form.shape, form.stride)
            else:
                made = torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device="meta")
            return FakeTensor(self._mode, made, _CPU)


class NoRule(LookupError):
    """torch cannot tell the shapes of what an operator makes."""


def guarded(mode: FakeTensorMode, func: Any, args: Any, kwargs: Any) -> Any:
    """Return func(*args, **kwargs), which torch runs on zeros where it has no rule for its shapes, if these are few.

    Raises:
        NoRule: They are many.
        TypeError: Matrices have different dtypes, for which torch has a rule and no kernel.
    """
    _check_dtypes(func, args)
    mode.allow_fallback_kernels = not any(_is_huge(leaf) for leaf in tree_leaves((args, kwargs)))
    try:
        return func(*args, **kwargs)
    except UnsupportedOperatorException as error:
        raise NoRule(
            f"torch has no rule for the shapes that {func} makes, which the step calls: measure it on a small batch "
            "with loopgrad.analysis.measure, or write the cell without it"
        ) from error


def _check_dtypes(func: Any, args: Any) -> None:
    if func in _PRODUCTS:
        found = {arg.dtype for arg in args if isinstance(arg, Tensor)}
        if len(found) > 1:
            raise TypeError(f"{func} takes matrices of one dtype, and has {' and '.join(sorted(map(str, found)))}")


def _is_huge(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.numel() > _MOST_NUMBERS


def _is_simple(func: Any) -> bool:
    """Whether an operator returns one tensor, new or a view of its first argument, and writes to nothing."""
    schema = func._schema
    if func.namespace != "aten" or len(schema.returns) != 1 or str(schema.returns[0].type) != "Tensor":
        return False
    if _UNFORESEEABLE & set(func.tags) or any(it.alias_info and it.alias_info.is_write for it in schema.arguments):
        return False
    aliased = [i for i, it in enumerate(schema.arguments) if it.alias_info is not None]
    return aliased == ([0] if func.is_view else [])


def _described(values: Iterable[Any], parts: list[Any]) -> bool:
    """Add what tells arguments apart to `parts`; False if something else could."""
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            if value.layout != torch.strided or value.fake_device != _CPU or value.dtype.is_complex:
                return False
            if value._is_zerotensor():  # what forward AD has for no tangent; it is copied where others are not
                return False
            parts += (value.shape, value.stride(), value.storage_offset(), value.dtype)
        elif kind in (list, tuple, torch.Size):
            parts += (kind, len(value))
            if not _described(value, parts):
                return False
        elif kind in _VALUES:
            parts += (kind, value)
        else:
            return False
    return True


def _form(func: Any, args: Any, found: Any) -> _Form | None:
    if type(found) is not FakeTensor or found.layout != torch.strided or found.fake_device != _CPU or found.is_neg():
        return None
    if found._is_zerotensor():
        return None
    storage = found.untyped_storage()
    # _unsafe_view is no view to autograd, and yet allocates nothing
    shares = bool(args) and isinstance(args[0], Tensor) and storage._cdata == args[0].untyped_storage()._cdata
    form = _Form(found.shape, found.stride(), found.dtype, found.storage_offset(), shares)
    if shares or func.is_view:
        return form if shares else None
    reached = 1 + sum((size - 1) * step for size, step in zip(form.shape, form.stride, strict=True))
    count = reached if found.numel() else 0
    return form if form.offset == 0 and storage.nbytes() == count * form.dtype.itemsize else None
