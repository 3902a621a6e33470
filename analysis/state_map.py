"""A recursion's cycle as a map of vectors, one per sample, with its products by the Jacobian and its transpose."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from loopgrad.analysis.latent import check_shapes, is_latent, latent, latent_names, state_leaves
from loopgrad.analysis.precision import cast, evaluated_in
from loopgrad.analysis.streams import short
from loopgrad.analysis.summaries import shortened
from loopgrad.gradients import tree
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.row_layout import RowLayout


class StateMap:
    """f: (batch, n) -> (batch, n), the updates `steps` of a cell with its inputs bound; samples do not see each other.

    The vectors are made of the floating leaves of the state. Other leaves (flags, counters, token ids, None) have the
    values of `state` at the first of the updates, and go on from there as the cell gives them.

    The cell runs in evaluation mode, without gradients of its parameters, in `dtype`; attention takes its plain kernel,
    the one that can be differentiated forward. The module is left as it was. Inputs may have the batch anywhere.

    Args:
        cell: Called as cell(state, inputs, step).
        state: A state of the shape that the map works on; it becomes `point`.
        inputs: What the cell reads.
        steps: Updates that make up f; default the first cycle, 0 .. period - 1.
        dtype: In which f is evaluated; None for the cell's own.

    Attributes:
        point: `state` as vectors, (batch, n).

    Raises:
        ValueError: The floating leaves of state have no common first dimension; when it is called, that the cell gives
            one of them another shape.

    Example:
        >>> import torch
        >>> from loopgrad.analysis import StateMap, spectral_radius
        >>> from loopgrad.gradients import Stationary
        >>> f = StateMap(Stationary(lambda z, x: 0.5 * z.flip(-1)), torch.zeros(1, 2), None)
        >>> round(spectral_radius(f, f.point).item(), 6)
        0.5
    """

    def __init__(
        self,
        cell: nn.Module,
        state: Any,
        inputs: Any,
        steps: range | None = None,
        dtype: torch.dtype | None = torch.float64,
    ):
        self._cell, self._dtype = cell, dtype
        self._steps = range(period_of(cell)) if steps is None else steps
        state = tree.map_tensors(torch.Tensor.detach, state if dtype is None else cast(state, dtype))
        self._inputs = tree.map_tensors(torch.Tensor.detach, inputs if dtype is None else cast(inputs, dtype))
        self._given = state
        self._names, self._latent = latent_names(state), latent(state)
        self._rows = RowLayout(self._latent, per_sample=True)
        self.point = self._rows.join(self._latent).clone()

    def __repr__(self) -> str:
        """Say of what and on what it is a map."""
        batch, n = self.point.shape
        cell, dtype = type(self._cell).__name__, short(self.point.dtype)
        return shortened(f"StateMap of {cell}, steps {self._steps}: {batch} samples of {n} numbers, {dtype}")

    def sample(self, index: int) -> "StateMap":
        """Return the map of one sample, on batches of one.

        Where its row of the state and of the inputs, those whose first dimension is the batch's, gives what the whole
        batch gives, the cell runs on that row alone; else, as with time-major inputs, on the batch, for this sample.
        """
        batch = len(self.point)
        state = row_of(self.state(self.point), index, batch)
        if batch == 1:
            return StateMap(self._cell, state, self._inputs, self._steps, self._dtype)
        alone = StateMap(self._cell, state, row_of(self._inputs, index, batch), self._steps, self._dtype)
        probes, images = self._probed
        try:
            own = alone(probes[index : index + 1])[0]
        except Exception:  # whatever a cell raises on inputs that were cut wrongly
            return _WithinBatch(self, index, state)
        image = images[index]
        eps = max(torch.finfo(leaf.dtype).eps for leaf in latent(state))  # a batch of one may round otherwise
        same = own.shape == image.shape and bool((own - image).norm() <= eps**0.5 * image.norm())  # not so where nan
        return alone if same else _WithinBatch(self, index, state)

    @cached_property
    def _probed(self) -> tuple[Tensor, Tensor]:
        """Points near `point`, and their images: at `point` itself, often zero, a product with inputs says nothing."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.point.shape, generator=generator, dtype=torch.float64).to(self.point)
        probes = self.point + noise
        return probes, self(probes)

    def state(self, z: Tensor) -> Any:
        """Return vectors as a state, its other leaves as they were given."""
        parts = iter(self._rows.split(z))
        return tree.map_tensors(lambda leaf: next(parts) if is_latent(leaf) else leaf.clone(), self._given)

    def __call__(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        with torch.no_grad(), self._conditions():
            return self._evaluate(z)

    def push(self, z: Tensor, *vectors: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return f(z) and J v for each v, by forward differentiation: one evaluation per v."""
        images, products = z, []
        with torch.no_grad(), self._conditions(), warnings.catch_warnings():
            # torch 2.13's own, at first use
            warnings.filterwarnings("ignore", ".*torch.jit.script.*", DeprecationWarning)
            if not vectors:
                return self._evaluate(z), []
            for v in vectors:
                with forward_ad.dual_level():
                    dual = forward_ad.unpack_dual(self._evaluate(forward_ad.make_dual(z, v.to(z.dtype))))
                    images = dual.primal
                    products.append(torch.zeros_like(z) if dual.tangent is None else dual.tangent)
        return images.clone(), [product.clone() for product in products]

    @contextmanager
    def linearised(self, z: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield v -> J^T v at z: one evaluation in all, one backward pass per v."""
        z = z.detach().requires_grad_()
        with torch.enable_grad(), self._conditions():
            image = self._evaluate(z)

        def pull(v: Tensor) -> Tensor:
            if not image.requires_grad:
                return torch.zeros_like(z)
            (found,) = torch.autograd.grad(image, z, v.to(image.dtype), retain_graph=True, allow_unused=True)
            return torch.zeros_like(z) if found is None else found

        yield pull

    def jacobians(self, z: Tensor) -> Tensor:
        """Return the dense Jacobians, (batch, n, n): n backward passes."""
        with self.linearised(z) as pull:
            rows = [pull(unit.expand_as(z)) for unit in torch.eye(z.shape[1], dtype=z.dtype, device=z.device)]
        return torch.stack(rows, dim=1)

    def _evaluate(self, z: Tensor) -> Tensor:
        state = self.state(z.clone())  # a cell may write into its state
        for step in self._steps:
            state = self._cell(state, self._inputs, step)
        leaves = state_leaves(state, self._names)
        check_shapes(leaves, self._latent, self._names)
        return self._rows.join(leaves)

    @contextmanager
    def _conditions(self) -> Iterator[None]:
        flags = [(module, module.training) for module in self._cell.modules()]
        wanted = [(parameter, parameter.requires_grad) for parameter in self._cell.parameters()]
        try:
            self._cell.eval()
            for parameter, _ in wanted:
                parameter.requires_grad_(False)
            with (
                sdpa_kernel(SDPBackend.MATH),
                torch.autocast(self.point.device.type, enabled=False),
                evaluated_in(self._cell, self._dtype) if self._dtype is not None else nullcontext(),
            ):
                yield
        finally:
            for module, flag in flags:
                module.training = flag
            for parameter, flag in wanted:
                parameter.requires_grad_(flag)


class _WithinBatch(StateMap):
    """The map of one sample whose cell runs on the whole batch, the other samples staying where they are."""

    def __init__(self, whole: StateMap, index: int, state: Any):
        super().__init__(whole._cell, state, whole._inputs, whole._steps, whole._dtype)
        self._whole, self._index = whole, index

    def sample(self, index: int) -> StateMap:
        return self

    def _evaluate(self, z: Tensor) -> Tensor:
        i, rest = self._index, self._whole.point
        return self._whole._evaluate(torch.cat([rest[:i], z, rest[i + 1 :]]))[i : i + 1]


def row_of(values: Any, row: int, batch: int) -> Any:
    """Return a tree with one row of each leaf whose first dimension is the batch's, kept as a batch of one."""
    return tree.map_tensors(lambda it: it[row : row + 1] if it.dim() and it.shape[0] == batch else it, values)
