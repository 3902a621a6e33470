"""Running updates without a graph, and noting what a second run must find as it was to give the same values."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import get_device_states, set_device_states

from loopgrad.gradients import tree


def run_without_graph(cell: nn.Module, state: Any, inputs: Any, steps: range) -> Any:
    """Run updates without keeping a graph, so that they give the values they give with one, and leave no trace.

    Three traps of torch: nn.MultiheadAttention in eval mode takes another kernel under no_grad (values differ by
    1e-4); so does nn.LSTM on CPU, which has no switch for it and is run with a graph that is dropped at once; and
    autocast caches weight casts made under no_grad, which later uses in the same region would then share, and so
    lose the weight's gradient.
    """
    with graph_free(cell) as prepared:
        for step in steps:
            state = prepared(cell(state, inputs, step))
    return tree.map_tensors(torch.Tensor.detach, state)


@contextmanager
def graph_free(cell: nn.Module) -> Iterator[Callable[[Any], Any]]:
    """Run updates of `cell` in the block as `run_without_graph` does; yields what each new state must go through."""
    with_graph = any(isinstance(module, nn.RNNBase) for module in cell.modules())
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.set_grad_enabled(with_graph):
            yield partial(tree.map_tensors, torch.Tensor.detach) if with_graph else lambda state: state
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.clear_autocast_cache()


class Conditions:
    """What an update depends on beside its arguments, noted at the start of a stretch of updates.

    Args:
        cell: The cell, whose buffers and train/eval flags are noted.
        tensors: The tensors of the call; the generators and autocast settings of their devices are noted.
        previous: Conditions noted earlier in the same run; their copy of the buffers is shared while it holds.
    """

    def __init__(self, cell: nn.Module, tensors: Sequence[torch.Tensor], previous: "Conditions | None" = None):
        types = {tensor.device.type for tensor in tensors} - {"cpu", "meta"}
        self.accelerator = next(iter(types), "cuda")
        self.device_ids: list[int] = []
        if types:
            self.device_ids = get_device_states(*tensors)[0]
        self.generators = self.generator_states()
        if previous is not None and all(map(torch.equal, self.generators, previous.generators)):
            self.generators = previous.generators
        self.autocast = [(d, torch.get_autocast_dtype(d), torch.is_autocast_enabled(d)) for d in ("cpu", *types)]
        self.autocast_cache = torch.is_autocast_cache_enabled()
        self.training = [module.training for module in cell.modules()]
        live = dict(cell.named_buffers())
        self.versions = {name: (id(buffer), buffer._version) for name, buffer in live.items()}
        if previous is not None and previous.versions == self.versions:
            self.buffers = previous.buffers
        else:
            self.buffers = {name: buffer.detach().clone() for name, buffer in live.items()}

    def generator_states(self) -> list[torch.Tensor]:
        """Return the states of the generators now: of the CPU, then of the devices of the call."""
        device = torch.get_device_module(self.accelerator) if self.device_ids else None
        return [torch.get_rng_state(), *(device.get_rng_state(i) for i in self.device_ids)]  # pyright: ignore

    def set_generators(self, states: Sequence[torch.Tensor]) -> None:
        """Put the generators into states that `generator_states` has returned."""
        torch.set_rng_state(states[0])
        set_device_states(self.device_ids, list(states[1:]), device_type=self.accelerator)

    def changed_buffer(self, cell: nn.Module) -> str | None:
        """Return the name of a buffer that is not what it was when this was noted, or None."""
        for name, buffer in cell.named_buffers() if self.versions else ():
            if self.versions.get(name) != (id(buffer), buffer._version):
                return name
        return None

    def autocast_caches(self) -> bool:
        """Return whether autocast was on and kept the casts of weights for its whole region."""
        return self.autocast_cache and any(enabled for *_, enabled in self.autocast)

    @contextmanager
    def restored(self, cell: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
        """Meet the conditions again with autograd on; yields copies of the buffers to run with.

        On exit generators, flags and autocast are as they were; the cell's own buffers are not touched.

        Raises:
            RuntimeError: No update had changed a buffer, so that no copy was kept, and something has since then.
        """
        if not self.buffers and (changed := self.changed_buffer(cell)) is not None:
            raise RuntimeError(
                f"the cell's buffer {changed} was changed between the forward and the backward pass, so its updates "
                "cannot be run again: change buffers after backward, or use BPTT()"
            )
        modules = list(cell.modules())
        flags = [module.training for module in modules]
        with ExitStack() as stack:
            if self.generators:
                stack.enter_context(torch.random.fork_rng(self.device_ids, device_type=self.accelerator))
                self.set_generators(self.generators)
            for device, dtype, enabled in self.autocast:
                cache = self.autocast_cache
                stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cache))
            stack.enter_context(torch.enable_grad())
            if flags != self.training:
                stack.callback(_set_training, modules, flags)
                _set_training(modules, self.training)
            yield {name: buffer.clone() for name, buffer in self.buffers.items()}


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


def _set_training(modules: list[nn.Module], flags: list[bool]) -> None:
    for module, flag in zip(modules, flags, strict=True):
        module.training = flag
