"""Running updates without a graph, and noting what a second run must find as it was to give the same values."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import get_device_states, set_device_states

from loopgrad.gradients import tree
from loopgrad.gradients.checks import version_of
from loopgrad.gradients.untouched import Autocast, Untouched

# modules that take another kernel where no graph is recorded, and whose values then differ by rounding
FUSED = (nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)


def run_without_graph(cell: nn.Module, state: Any, inputs: Any, steps: range) -> Any:
    """Run updates without keeping a graph, so that they give the values they give with one, and leave no trace.

    Three traps of torch: nn.MultiheadAttention and nn.LSTM take other kernels under no_grad (values differ by 1e-4), so
    such cells are run with a graph that is dropped at once; autocast caches weight casts made under no_grad, which
    later uses in the same region would then share, and so lose the weight's gradient; and so does the cache of
    torch.nn.utils.parametrize.cached().
    """
    with GraphFree(cell) as prepared:
        state = prepared(state) if steps else state  # compiled code is another for a state that requires grad
        for step in steps:
            state = prepared(cell(state, tree.own_containers(inputs), step))
    return tree.map_tensors(torch.Tensor.detach, state)


class GraphFree:
    """Runs updates of `cell` in the block as `run_without_graph` does; gives what each new state must go through."""

    def __init__(self, cell: nn.Module):
        self._with_graph = any(isinstance(module, FUSED) for module in cell.modules())
        self._known = set(parametrize._cache) if parametrize._cache_enabled else set()
        self._grad = torch.is_grad_enabled()

    def __enter__(self) -> Callable[[Any], Any]:
        """Begin the block."""
        torch.set_grad_enabled(self._with_graph)
        return partial(tree.map_tensors, _cut) if self._with_graph else _without_graph

    def __exit__(self, *exception: Any) -> None:
        """End the block."""
        torch.set_grad_enabled(self._grad)
        torch.clear_autocast_cache()
        for key in set(parametrize._cache) - self._known if parametrize._cache_enabled else ():
            del parametrize._cache[key]


def keep_derived_weights(cell: nn.Module) -> None:
    """Within torch.nn.utils.parametrize.cached(), have every weight of the cell derived now, with its graph."""
    if parametrize._cache_enabled and torch.is_grad_enabled():
        for module in cell.modules():
            if parametrize.is_parametrized(module):
                for name in module.parametrizations:  # pyright: ignore[reportGeneralTypeIssues]
                    getattr(module, name)


class Conditions:
    """What an update depends on beside its arguments, noted at the start of a stretch of updates.

    Args:
        cell: The cell, whose buffers and train/eval flags are noted.
        tensors: The tensors of the call; the generators and autocast settings of their devices are noted.
        previous: Conditions noted earlier in the same run; their copy of the buffers is shared while it holds.
    """

    def __init__(self, cell: nn.Module, tensors: Sequence[Any], previous: "Conditions | None" = None):
        tensors = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
        types = {tensor.device.type for tensor in tensors} - {"cpu", "meta"}
        self.accelerator = next(iter(types), "cuda")
        self.device_ids: list[int] = []
        if types:
            self.device_ids = get_device_states(*tensors)[0]
        self.generators = self.generator_states()
        if previous is not None and all(map(torch.equal, self.generators, previous.generators)):
            self.generators = previous.generators
        self.autocast = Autocast.now(("cpu", *types))
        self.derived = dict(parametrize._cache) if parametrize._cache_enabled else {}
        self.training = [module.training for module in cell.modules()]
        self.live = live = dict(cell.named_buffers())
        self.versions = {name: (id(buffer), version_of(buffer)) for name, buffer in live.items()}
        if previous is not None and previous.versions == self.versions:
            self.buffers = previous.buffers
        else:
            self.buffers = {name: buffer.detach().clone() for name, buffer in live.items()}

    @property
    def changing(self) -> bool:
        """Whether an update may draw random numbers or change a buffer, as far as `drop_untouched` has told."""
        return bool(self.generators or self.buffers)

    def generator_states(self) -> list[torch.Tensor]:
        """Return the states of the generators now: of the CPU, then of the devices of the call."""
        device = torch.get_device_module(self.accelerator) if self.device_ids else None
        return [torch.get_rng_state(), *(device.get_rng_state(i) for i in self.device_ids)]  # pyright: ignore

    def set_generators(self, states: Sequence[torch.Tensor]) -> None:
        """Put the generators into states that `generator_states` has returned."""
        torch.set_rng_state(states[0])
        set_device_states(self.device_ids, list(states[1:]), device_type=self.accelerator)

    def put_back(self, cell: nn.Module) -> None:
        """Set the generators, and if an update has changed one the values of buffers, back to what was noted."""
        self.set_generators(self.generators)
        if self.changed_buffer(cell) is not None:
            # then all of them, and uncounted: as batch_norm writes its own, which a graph may hold and not read
            for name, buffer in cell.named_buffers():
                if name in self.buffers:
                    buffer.data.copy_(self.buffers[name])

    def sets_weights(self, enabled: int) -> bool:
        """Whether meeting these conditions sets torch's cache of parametrized weights, now `enabled` or not."""
        return bool(self.derived or enabled)

    def changed_buffer(self, cell: nn.Module) -> str | None:
        """Return the name of a buffer that is not what it was when this was noted, or None."""
        for name, buffer in cell.named_buffers() if self.versions else ():
            if self.versions.get(name) != (id(buffer), version_of(buffer)):
                return name
        return None

    def written_buffer(self) -> str | None:
        """Return the name of a buffer that has been written to since this was noted, or None."""
        noted = ((name, self.live[name], version) for name, (_, version) in self.versions.items())
        return next((name for name, buffer, version in noted if version_of(buffer) != version), None)

    def restored(self, cell: nn.Module) -> "Restored":
        """Meet the conditions again with autograd on, for a block that is given copies of the buffers to run with.

        At its end generators, flags, caches and autocast are as they were; the cell's own buffers are not touched.

        Raises:
            RuntimeError: No update had changed a buffer, so that no copy was kept, and something has since then.
        """
        if not self.buffers and (changed := self.written_buffer()) is not None:
            raise RuntimeError(
                f"the cell's buffer {changed} was changed between the forward and the backward pass, so its updates "
                "cannot be run again: change buffers after backward, or use BPTT()"
            )
        return Restored(self, cell)


class Restored(Untouched):
    """The block of `Conditions.restored`."""

    def __init__(self, conditions: Conditions, cell: nn.Module):
        super().__init__(cell, conditions)
        self._met, self._cell = conditions, cell
        settings = Autocast.now([device for device, *_ in conditions.autocast.devices])
        self._casts = conditions.autocast.caches() or settings.caches()

    def __enter__(self) -> Any:
        """Meet the conditions; the copies of the buffers, by name."""
        met = self._met
        try:
            if met.generators:
                met.set_generators(met.generators)
            if Autocast.now([device for device, *_ in met.autocast.devices]) != met.autocast:
                met.autocast.set()
            if self._casts:  # none made outside, whose graph is another, and none left behind
                torch.clear_autocast_cache()
            if met.sets_weights(parametrize._cache_enabled):
                parametrize._cache_enabled, parametrize._cache = bool(met.derived), dict(met.derived)
            for module, flag in zip(self._cell.modules(), met.training, strict=True):
                if module.training != flag:
                    module.training = flag
            torch.set_grad_enabled(True)
            if met.buffers:
                return {name: buffer.clone() for name, buffer in met.buffers.items()}
            now = dict(self._cell.named_buffers())  # others in their place, as after functional_call
            return {name: buffer for name, buffer in met.live.items() if name in now and now[name] is not buffer}
        except BaseException:
            self.put_back()
            raise

    def __exit__(self, *exception: Any) -> None:
        """Put back what was before."""
        if self._casts:
            torch.clear_autocast_cache()
        super().__exit__(*exception)


def drop_untouched(noted: Sequence[Conditions], end: Conditions) -> None:
    """Drop from the conditions the copies of what no update changed before its `end`."""
    start = noted[0]
    same_buffers = start.versions == end.versions
    same_generators = all(map(torch.equal, start.generators, end.generators))
    for conditions in noted:
        if same_buffers:
            conditions.buffers = {}
        if same_generators:
            conditions.generators = []


def _without_graph(state: Any) -> Any:
    """Return a state without the graph that a cell which turns autograd on has recorded."""
    if isinstance(state, torch.Tensor):
        return state.detach() if state.requires_grad else state
    return tree.map_tensors(lambda leaf: leaf.detach() if leaf.requires_grad else leaf, state)


def _cut(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor without its graph that requires grad if it did: what kernel runs next may depend on it."""
    return tensor.detach().requires_grad_(tensor.requires_grad)
