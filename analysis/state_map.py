"""A recursion's cycle as a map of vectors, one per sample, with its products by the Jacobian and its transpose."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from loopgrad.analysis.evaluation import T, differentiating_forward, in_evaluation, pulled_back
from loopgrad.analysis.latent import Streams, check_shapes
from loopgrad.analysis.precision import cast, tensors_of
from loopgrad.analysis.streams import counted, equal_rows, short
from loopgrad.analysis.summaries import shortened
from loopgrad.gradients import tree
from loopgrad.gradients.batch_first import batch_first, given_back, inside
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.row_layout import RowLayout

_NO_JACOBIAN = (
    "the cell computes outside torch (numpy, .data or detach), so it has no Jacobian: write it with torch operators, "
    "or ask for what needs none, such as record and multistart"
)


class StateMap:
    """f: (batch, n) -> (batch, n), the updates `steps` of a cell with its inputs bound; samples do not see each other.

    The vectors are made of the latent state: the floating leaves, or those named in `latent`. Other leaves (flags,
    counters, token ids, None, accumulators) have the values of `state` at the first of the updates, and go on from
    there as the cell gives them.

    The cell runs in evaluation mode, without gradients of its parameters, in `dtype`, on copies of its tensors. The
    module is left as it was; while it is evaluated in training mode, other threads see its flags. Inputs may have the
    batch anywhere.

    Args:
        cell: Called as cell(state, inputs, step).
        state: A state of the shape that the map works on; it becomes `point`.
        inputs: What the cell reads.
        steps: Updates that make up f; default the first cycle, 0 .. period - 1.
        dtype: In which f is evaluated; None for the cell's own.
        batch_dim: Where the batch is, as estimators are told. What takes f and its vectors need not be told again.
        latent: Names of the leaves that are the latent state, as in `record`.

    Attributes:
        point: `state` as vectors, (batch, n).

    Raises:
        ValueError: The latent leaves of state have no common first dimension, or a batch of 0; batch_dim or latent does
            not fit the state; or in a call, the cell gives one of them another shape.

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
        batch_dim: Any = 0,
        latent: Any = None,
    ):
        cell, state, inputs = batch_first(cell, state, inputs, batch_dim)
        self._cell, self._dtype = cell, dtype
        self._steps = range(period_of(cell)) if steps is None else steps
        with torch.inference_mode(False):
            self._given, self._inputs = self._own(state), self._own(inputs)
            self._streams = Streams.of(state, latent)
            self._latent = self._streams.picked(self._given)
            self._rows = RowLayout(self._latent, per_sample=True)
            if not len(self._latent[0]):
                raise ValueError("state has batch 0, and a map of no samples says nothing: leave empty batches out")
            self.point = self._rows.join(self._latent).clone()

    def _own(self, values: Any) -> Any:
        """Return values in the dtype of the map, without graph, as tensors that autograd takes."""
        values = tree.map_tensors(lambda leaf: counted(leaf.detach()), values)
        return values if self._dtype is None else cast(values, self._dtype)

    def __repr__(self) -> str:
        """Say of what and on what it is a map."""
        batch, n = self.point.shape
        cell, dtype = type(inside(self._cell)).__name__, short(self.point.dtype)
        return shortened(f"StateMap of {cell}, steps {self._steps}: {batch} samples of {n} numbers, {dtype}")

    def sample(self, index: int) -> "StateMap":
        """Return the map of one sample, on batches of one.

        Where its row of the state and of the inputs, those whose first dimension is the batch's, gives what the whole
        batch gives, the cell runs on that row alone; else, as with time-major inputs, on the batch, for this sample.
        """
        batch = len(self.point)
        state = row_of(self._state(self.point), index, batch)
        if batch == 1:
            return self._of(state, self._inputs)
        alone = self._of(state, row_of(self._inputs, index, batch))
        probes, images = self._probed
        try:
            own = alone(probes[index : index + 1])[0]
        except Exception:  # whatever a cell raises on inputs that were cut wrongly
            return _WithinBatch(self, index, state)
        image = images[index]
        # a batch of one may round otherwise
        eps = max(torch.finfo(leaf.dtype).eps for leaf in self._streams.picked(state))
        same = own.shape == image.shape and bool((own - image).norm() <= eps**0.5 * image.norm())  # not so where nan
        return alone if same else _WithinBatch(self, index, state)

    def _of(self, state: Any, inputs: Any) -> "StateMap":
        return StateMap(self._cell, state, inputs, self._steps, self._dtype, latent=self._streams.names)

    @cached_property
    def _probed(self) -> tuple[Tensor, Tensor]:
        """Points near `point`, and their images: at `point` itself, often zero, a product with inputs says nothing."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.point.shape, generator=generator, dtype=torch.float64).to(self.point)
        probes = self.point + noise
        return probes, self(probes)

    def state(self, z: Tensor) -> Any:
        """Return vectors as a state, laid out as the one that was given, its other leaves as they were."""
        return given_back(self._cell, self._state(z))

    def __call__(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return self._run(lambda: self._evaluate(counted(z)), with_graph=False)

    def push(self, z: Tensor, *vectors: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return f(z) and J v for each v, by forward differentiation: one evaluation per v.

        Raises:
            TypeError: The cell leaves torch, as one that computes by numpy does.
        """
        if not vectors:
            return self(z), []
        found = [self._run(lambda v=v: differentiating_forward(lambda: self._push(z, v)), False) for v in vectors]
        images, products = found[-1][0], [product for _, product in found]
        if any(product is None for product in products):
            self._check_constant(z)
        return images, [torch.zeros_like(images) if product is None else product for product in products]

    def _push(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        own, tangent = counted(z).contiguous(), counted(v).to(z.dtype).contiguous()
        dual = forward_ad.unpack_dual(self._evaluate(forward_ad.make_dual(own, tangent)))
        return dual.primal.clone(), None if dual.tangent is None else dual.tangent.clone()

    @contextmanager
    def linearised(self, z: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield v -> J^T v at z: one evaluation in all, one backward pass per v.

        Raises:
            TypeError: The cell leaves torch, as one that computes by numpy does.
        """
        old, new = self._stand_ins()

        def evaluate() -> tuple[Tensor, Tensor]:
            point = counted(z.detach()).requires_grad_()
            return point, self._evaluate(point)

        try:
            point, image = self._run(evaluate, True, (old, new))
        except RuntimeError as error:
            if "numpy()" in str(error):
                raise TypeError(_NO_JACOBIAN) from error
            raise
        if not image.requires_grad:
            self._check_constant(z.detach())

        def product(v: Tensor) -> Tensor:
            (found,) = pulled_back(image, counted(v).to(image.dtype), [point], keep=True)
            return torch.zeros_like(point) if found is None else found

        def pull(v: Tensor) -> Tensor:
            if not image.requires_grad:
                return torch.zeros_like(point)
            return self._run(lambda: product(v), False, (old, new))  # backward may run the cell again

        yield pull

    def jacobians(self, z: Tensor) -> Tensor:
        """Return the dense Jacobians, (batch, n, n): n backward passes."""
        with self.linearised(z) as pull:
            rows = [pull(unit.expand_as(z)) for unit in torch.eye(z.shape[1], dtype=z.dtype, device=z.device)]
        return torch.stack(rows, dim=1)

    def _state(self, z: Tensor) -> Any:
        parts = dict(zip(map(id, self._latent), self._rows.split(z), strict=True))
        return tree.map_tensors(lambda leaf: parts[id(leaf)] if id(leaf) in parts else leaf.clone(), self._given)

    def _evaluate(self, z: Tensor) -> Tensor:
        state = self._state(z.clone())  # a cell may write into its state
        for step in self._steps:
            state = self._cell(state, self._inputs, step)
        leaves = self._streams.leaves(state)
        check_shapes(leaves, self._latent, self._streams.names)
        return self._rows.join(leaves)

    def _check_constant(self, z: Tensor) -> None:
        """Raise where a map without a graph is not constant, so that its Jacobian is not the zero it seems to be."""
        size = torch.finfo(z.dtype).eps ** 0.5
        first, second = self(z), self(z + size * (1 + z.abs()))
        moved = ~equal_rows(first, second) & torch.isfinite(first).flatten(1).all(dim=1)
        if bool(moved.any()):
            raise TypeError(_NO_JACOBIAN)

    def _stand_ins(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tensors of the cell, and what stands in for them: without gradients, buffers as copies."""
        with torch.inference_mode(False):
            old, buffers = tensors_of(self._cell), {id(buffer) for buffer in self._cell.buffers()}
            new = [tensor.detach() if self._dtype is None else cast(tensor.detach(), self._dtype) for tensor in old]
            pairs = zip(old, new, strict=True)
            return old, [copy.clone() if id(tensor) in buffers else counted(copy) for tensor, copy in pairs]

    def _run(self, fn: Callable[[], T], with_graph: bool, tensors: Sequence[list[Tensor]] = ()) -> T:
        old, new = tensors or self._stand_ins()
        return in_evaluation(fn, self._cell, self.point.device.type, old, new, with_graph)


class _WithinBatch(StateMap):
    """The map of one sample whose cell runs on the whole batch, the other samples staying where they are."""

    def __init__(self, whole: StateMap, index: int, state: Any):
        super().__init__(whole._cell, state, whole._inputs, whole._steps, whole._dtype, latent=whole._streams.names)
        self._whole, self._index = whole, index

    def sample(self, index: int) -> StateMap:
        return self

    def _evaluate(self, z: Tensor) -> Tensor:
        i, rest = self._index, self._whole.point
        return self._whole._evaluate(torch.cat([rest[:i], z, rest[i + 1 :]]))[i : i + 1]


def row_of(values: Any, row: int, batch: int) -> Any:
    """Return a tree with one row of each leaf whose first dimension is the batch's, kept as a batch of one."""
    return tree.map_tensors(lambda it: it[row : row + 1] if it.dim() and it.shape[0] == batch else it, values)
