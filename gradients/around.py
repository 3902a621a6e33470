"""Wrappers that share a cell between processes act once around a recursion, and not at each of its updates.

For DistributedDataParallel and fully_shard the recursion is what one forward pass of the cell would be: weights are
gathered once in the forward and once in the backward pass, and gradients reduced once.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from loopgrad.gradients import tree
from loopgrad.gradients.graphs import requires_grad
from loopgrad.gradients.invertible import undoing

# parts of fully_shard's notes that have no public name; tried with torch 2.13
_OF_STATE = (
    "_pre_forward",
    "_post_forward",
    "_pre_backward",
    "_training_state",
    "_state_ctx",
    "_mp_policy",
    "_fsdp_param_groups",
)


class Around:
    """A block in which a recursion runs on `cell`, the weights at hand and the hooks of fully_shard quiet.

    Casts of a mixed-precision policy are made at each update all the same. Backward is no longer than the block that
    fully_shard itself calls the backward pass: weights are gathered before the first product and given back at its end.

    Args:
        cell: The caller's cell.
        others: Further modules that the recursion calls, such as a readout.

    Attributes:
        cell: What the recursion is to call.

    Raises:
        TypeError: torch.compile is around a DistributedDataParallel, or that has a precision of its own.
        RuntimeError: fully_shard groups a module of the cell with one outside, or is not that of a torch known here.
    """

    def __init__(self, cell: nn.Module, others: Sequence[Any] = ()):
        self._parallel, self.cell = _parallel(cell)
        roots = [self.cell, *(it for it in others if isinstance(it, nn.Module))]
        self._sharded = list(sharded(list(dict.fromkeys(m for root in roots for m in root.modules()))))
        self._check_casts()
        self._begun: list[tuple[nn.Module, Any, Any, Any]] = []

    def _check_casts(self) -> None:
        exact = undoing(self.cell)
        for module, state in self._sharded:
            policy = state._mp_policy
            casts = policy.output_dtype or (policy.param_dtype if policy.cast_forward_inputs else None)
            if module is exact and casts is not None:
                raise TypeError(
                    f"fully_shard(mp_policy=...) on {type(exact).__name__} would cast its coupled state to {casts} at "
                    "each update, and what it undoes with it: call fully_shard on the cell inside, or on the model"
                )

    def __enter__(self) -> "Around":
        """Gather the weights and quieten the hooks."""
        if self._parallel is not None:
            self._parallel._pre_forward()
        try:
            for module, state in self._sharded:
                before, root = state._training_state, state._state_ctx.iter_forward_root
                self._begun.append((module, state, before, root))
                if before is not type(before).FORWARD:  # or the module itself is running, with its weights at hand
                    state._pre_forward(module, (), {})
                state._training_state = type(before).PRE_BACKWARD  # as when an update is run again: nothing but casts
        except BaseException:
            self._drop()
            raise
        return self

    def ended(self, rollout: Any) -> Any:
        """Give the weights back, and return the rollout with what its backward pass must begin with."""
        tensors = [*tree.tensors(rollout.state), *tree.tensors(rollout.outputs)]
        while self._begun:
            _, state, before, _ = self._begun[-1]
            idle = before is type(before).IDLE
            state._training_state = type(before).FORWARD if idle else before
            if idle:
                state._post_forward(self._begun[-1][0], (), ())
            for tensor in filter(requires_grad, tensors):
                tensor.register_hook(state._pre_backward)
            self._begun.pop()
        if self._parallel is None:
            return rollout
        found: Any = self._parallel._post_forward(tensors)
        queue = iter(found)
        state = tree.map_tensors(lambda _: next(queue), rollout.state)
        return replace(rollout, state=state, outputs=tree.map_tensors(lambda _: next(queue), rollout.outputs))

    def __exit__(self, *exception: Any) -> None:
        """End the block; give back what an interruption has left."""
        self._drop()

    def _drop(self) -> None:
        while self._begun:
            module, state, before, root = self._begun[-1]
            state._training_state = before
            if before is type(before).IDLE:
                for group in state._fsdp_param_groups:
                    group._training_state = before
                module.reshard()  # pyright: ignore[reportCallIssue]
                state._state_ctx.iter_forward_root = root
            self._begun.pop()


def sharded(modules: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, Any]]:
    """Yield the modules that `fully_shard` was called on, one for each call, each with what it notes of the call."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:  # not imported by anybody: there are none
        return
    kind, seen = fsdp.FSDPModule, set()
    for module in modules:
        if not isinstance(module, kind):
            continue
        state = module._get_fsdp_state()  # pyright: ignore[reportCallIssue]
        if missing := [name for name in _OF_STATE if not hasattr(state, name)]:
            raise RuntimeError(
                f"the weights of a cell that fully_shard has sharded are gathered once per recursion by parts of torch "
                f"that have no public name, and torch {torch.__version__} has no {missing[0]!r}: use torch 2.13, or "
                "call fully_shard on the model alone"
            )
        if not set(state._modules) <= set(modules):
            raise RuntimeError(
                "fully_shard([...]) groups a module of the cell with one outside of it, whose weights the recursion "
                "would gather and give back at the wrong time: call fully_shard on them one by one"
            )
        if id(state) not in seen:
            seen.add(id(state))
            yield module, state


def _parallel(cell: nn.Module) -> tuple[DistributedDataParallel | None, nn.Module]:
    if isinstance(getattr(cell, "_orig_mod", None), DistributedDataParallel):
        raise TypeError(
            "torch.compile(DistributedDataParallel(cell)) would exchange gradients at each update: compile the cell "
            "first, DistributedDataParallel(torch.compile(cell)), or wrap the model"
        )
    if not isinstance(cell, DistributedDataParallel):
        return None, cell
    if cell.mixed_precision is not None or not all(hasattr(cell, name) for name in ("_pre_forward", "_post_forward")):
        raise TypeError(
            "DistributedDataParallel(cell) is taken off for the length of a recursion, which its mixed_precision and "
            f"torch {torch.__version__} do not allow: wrap the model in place of the cell"
        )
    return cell, cell.module
