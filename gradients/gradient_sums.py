"""Gradients of the tensors that every update reads, summed over updates bit for bit as one long graph would."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.autograd.graph import GradientEdge

from loopgrad.gradients.graphs import check_nothing_hidden, leaf_view, requires_grad


class GradientSums:
    """Takes one vector-Jacobian product after the other and adds up what falls on shared tensors.

    BPTT has one graph of all updates, and its backward pass adds the gradients of a tensor one by one as it meets the
    uses: ((g_1 + g_2) + g_3) + ... from the last update to the first. Floating sums depend on their order, so bit for
    bit the same gradient needs the same order from graphs of one update each. There are three cases:

    - Each update uses a tensor once: its gradient of this update is added to the total of those after it.
    - An update uses a tensor several times: autograd would first sum within the update, total + (g_4 + g_5). The total
      is therefore fed into the graph so that autograd meets it first and goes on from it, (total + g_4) + g_5.
    - autocast has cast a weight once for its whole region: in BPTT the gradients are summed before that one cast, in
      its low precision, and cast back once. So the sum is caught at the cast, and carried on from there.

    Args:
        leaves: The tensors themselves, or leaves that share memory with them; those that require grad are summed.
        bare: Which of them are to be read themselves, and not through a view.
        caches: Whether autocast casts bare leaves once for all updates.

    Attributes:
        entries: What the updates must read in place of the tensors.
    """

    def __init__(self, leaves: Sequence[torch.Tensor], bare: Sequence[bool], caches: bool):
        self._leaves = [leaf for leaf in leaves if leaf.requires_grad]
        with torch.enable_grad():
            self.entries = [leaf if as_it_is else leaf_view(leaf) for leaf, as_it_is in zip(leaves, bare, strict=True)]
        self._wanted = [tensor for tensor in self.entries if tensor.requires_grad]
        self._sums: list[torch.Tensor | None] = [None] * len(self._wanted)
        self._casts: dict[Any, torch.Tensor | None] = {}
        self._caches = caches
        self._hooks: list[Any] = []
        self._summed: dict[int, torch.Tensor] = {}
        self._used_once = True

    def learn(self, outputs: Sequence[torch.Tensor], known: Sequence[Any], since: int) -> None:
        """Learn from the graph of an update how it uses the tensors.

        Raises:
            HiddenTensor: It ends at a leaf that is neither one of the tensors nor `known`, or at a node made before
                node number `since`.
        """
        views = [entry for entry in self._wanted if not entry.is_leaf]
        nodes = check_nothing_hidden(outputs, [*known, *self._leaves], since, views)
        uses = Counter(parent for node in nodes for parent, _ in node.next_functions if parent is not None)
        own = {id(leaf) for leaf in self._leaves}
        ends = {node for node in uses if id(getattr(node, "variable", None)) in own}  # where leaves collect gradients
        if self._caches:
            # a cast right at a leaf is the one that autocast's cache hands to all updates: the node lives on
            for node in set(nodes) - set(self._casts):
                if node.name() == "ToCopyBackward0" and (end := node.next_functions[0][0]) in ends:
                    self._casts[node] = None
                    self._hooks.append(node.register_prehook(partial(self._stash, node)))
                    uses[end] -= 1  # nothing comes through it any more
        views = {tensor.grad_fn for tensor in self._wanted}
        if self._used_once and any(uses[node] > 1 for node in uses if node in views or node in ends):
            self._used_once = False

    def add(self, pairs: list[Any], reads: Sequence[Any]) -> list[torch.Tensor | None]:
        """Take the product for (output, gradient) pairs; returns the part of `reads` and adds up the rest."""
        # roots are in place before anything runs, so a total given at its cast is the first term there
        pairs = pairs + [(GradientEdge(cast, 0), total) for cast, total in self._casts.items() if total is not None]
        if not self._used_once and any(total is not None for total in self._sums):
            # autograd runs the node that was made last first: each total is there before the update's own terms
            resumed = _Resumed.apply(self._sums, *self._wanted)
            pairs.append((resumed, torch.ones_like(resumed)))
        outputs, seeds = zip(*pairs, strict=True)
        asked = [read for read in reads if requires_grad(read)]
        found = torch.autograd.grad(outputs, [*asked, *self._wanted], seeds, allow_unused=True)
        new, queue = found[len(asked) :], iter(found)
        self._sums = list(map(self._added, self._sums, new)) if self._used_once else list(new)
        return [next(queue) if requires_grad(read) else None for read in reads]

    def result(self) -> list[torch.Tensor | None]:
        """Return the total of each tensor, None where it requires no gradient or has none."""
        for hook in self._hooks:
            hook.remove()
        found = {id(leaf): total for leaf, total in zip(self._leaves, self._sums, strict=True)}
        for cast, total in self._casts.items():
            leaf = cast.next_functions[0][0].variable
            if total is not None:
                own = found[id(leaf)]
                found[id(leaf)] = total.to(leaf.dtype) if own is None else own + total.to(leaf.dtype)
        totals = iter(found.values())
        return [next(totals) if tensor.requires_grad else None for tensor in self.entries]

    def _added(self, total: torch.Tensor | None, new: torch.Tensor | None) -> torch.Tensor | None:
        if total is None or new is None:
            return new if total is None else total
        if id(total) in self._summed:
            return total.add_(new)
        total = total + new  # the first term may share its memory with another gradient
        self._summed[id(total)] = total
        return total

    def _stash(self, node: Any, gradients: tuple[torch.Tensor | None, ...]) -> tuple[None]:
        """Keep what arrives at a cast, the total so far among it, and let nothing through to the weight."""
        self._casts[node] = gradients[0]
        return (None,)


class _Resumed(torch.autograd.Function):
    """Gives the sums so far as gradients, and lets go of them so that autograd adds to them in place."""

    @staticmethod
    def forward(ctx: Any, sums: list[torch.Tensor | None], *tensors: torch.Tensor) -> torch.Tensor:
        ctx.sums = sums
        return torch.zeros((), device=tensors[0].device)  # of the device's own queue, or it would not run first

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        totals = tuple(ctx.sums)
        ctx.sums.clear()
        return None, *totals
