"""What estimators ask of autograd's graphs: products with chosen tensors, and whether a graph holds what it should."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class HiddenTensor(RuntimeError):
    """The cell reads a tensor that requires grad and that the estimator does not know of."""


def next_number() -> int:
    """Return the number of the next node that this thread adds to a graph."""
    return torch.autograd._get_sequence_nr()


@dataclass
class Search:
    """What a graph holds: its nodes, those nearest to the outputs first, the leaves it ends at, and older nodes."""

    nodes: list[Any]
    leaves: list[Tensor]
    older: list[Any]


def search(outputs: Sequence[Any], since: int = 0, apart: Sequence[Tensor] = ()) -> Search:
    """Search the graph of `outputs` as far as the nodes that were made before node number `since`.

    Nodes that Python has seen are freed recursively (torch 2.13): those of a deep graph must be handed to `free_nodes`.

    Args:
        outputs: Tensors; what has no graph is passed over.
        since: What `next_number` was before the graph was made.
        apart: Tensors at which the search ends.
    """
    ends = {(tensor.grad_fn, tensor.output_nr) for tensor in apart}
    roots = [(out.grad_fn, out.output_nr) for out in outputs if isinstance(out, Tensor) and out.grad_fn is not None]
    found = Search(list({node for node, nr in roots if (node, nr) not in ends}), [], [])
    seen = set(found.nodes)
    for node in found.nodes:
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.leaves.append(leaf)
        elif node._sequence_nr() < since:
            if node.name() == "ToCopyBackward0" and hasattr(node.next_functions[0][0], "variable"):
                found.leaves.append(node.next_functions[0][0].variable)  # a cast of a weight that autocast keeps
            else:
                found.older.append(node)
            continue
        for edge in node.next_functions:
            if edge[0] is not None and edge[0] not in seen and (not ends or edge not in ends):
                seen.add(edge[0])
                found.nodes.append(edge[0])
    return found


def check_nothing_hidden(
    outputs: Sequence[Any], known: Sequence[Any], since: int = 0, apart: Sequence[Tensor] = ()
) -> list[Any]:
    """Return the nodes of the graph of `outputs`; raise if it ends anywhere but at leaves that are `known` or `apart`.

    Any other end is a tensor that the cell reads without owning it, whose gradient would silently be lost.

    Raises:
        HiddenTensor: Naming the tensor as far as it is known, and what to do.
    """
    found, known_ids = search(outputs, since, apart), {id(tensor) for tensor in known}
    for leaf in found.leaves:
        if id(leaf) not in known_ids:
            raise HiddenTensor(
                f"the cell uses a tensor of shape {tuple(leaf.shape)} that requires grad and that could not be "
                "followed: its first updates did not read it, or it has hooks and only compiled code or an "
                "autograd.Function reads it. Its gradient would be lost: register it as a parameter of the cell, pass "
                "it in inputs, name it in Stationary(fn, parameters=[...]), or use BPTT()"
            )
    refuse_older(found)
    return found.nodes


def refuse_older(found: Search) -> None:
    """Raise HiddenTensor if a search has met nodes made before."""
    for node in found.older:
        raise HiddenTensor(
            f"the cell uses a tensor that was made before this update (by {node.name()}) and requires grad, in a place "
            "that cannot be followed: it was kept from another update, or only compiled or traced code or an "
            "autograd.Function reads it. Its gradient would be lost: pass it in inputs, keep it in the state, or use "
            "BPTT()"
        )


def reaches(tensor: Tensor, leaves: Sequence[Tensor], since: int) -> bool:
    """Return whether the graph of a tensor, as far as it was made after node number `since`, ends at a leaf."""
    wanted, nodes = {id(leaf) for leaf in leaves}, [tensor.grad_fn]
    seen = set(nodes)
    for node in nodes:
        if id(getattr(node, "variable", None)) in wanted:
            return True
        parents = (parent for parent, _ in node.next_functions if parent is not None)  # pyright: ignore
        fresh = {parent for parent in parents if parent._sequence_nr() >= since} - seen
        seen |= fresh
        nodes += fresh
    return False


def pull_back(
    outputs: Sequence[Any], cotangents: Sequence[Any], sources: Sequence[Any], keep: bool = False
) -> list[Tensor | None]:
    """Return the vector-Jacobian product with each source, None where it requires no gradient or has no part in it."""
    pairs = [pair for pair in zip(outputs, cotangents, strict=True) if requires_grad(pair[0]) and pair[1] is not None]
    asked = [source for source in sources if requires_grad(source)]
    if not pairs or not asked:
        return [None] * len(sources)
    outputs, cotangents = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, asked, cotangents, retain_graph=keep, allow_unused=True))
    return [next(found) if requires_grad(source) else None for source in sources]


def free_nodes(nodes: list[Any]) -> None:
    """Free the nodes of a graph whose outputs are gone, one by one."""
    nodes.reverse()
    while nodes:
        nodes.pop()


def is_floating(leaf: Any) -> bool:
    """Return whether a leaf is a tensor that can be differentiated; any other is carried along as it is."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def merged(found: Sequence[Tensor], leaves: Sequence[Any]) -> list[Any]:
    """Return leaves with `found` in place of those that are floating."""
    queue = iter(found)
    return [next(queue) if is_floating(leaf) else leaf for leaf in leaves]


def spread(values: Iterator[Any], leaves: Sequence[Any]) -> list[Any]:
    """Return the next values at the places of floating leaves, and None at those of others."""
    return [next(values) if is_floating(leaf) else None for leaf in leaves]


def requires_grad(leaf: Any) -> bool:
    """Return whether a leaf is a tensor that requires grad."""
    return isinstance(leaf, Tensor) and leaf.requires_grad


def alias(leaf: Any, wanted: bool) -> Any:
    """Return a leaf of a graph that shares the memory of a tensor; what is not floating, or no tensor, as it is."""
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.detach().requires_grad_(is_floating(leaf) and wanted)


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return a + b, where None is zero."""
    return b if a is None else a if b is None else a + b


def leaf_view(leaf: Any) -> Any:
    """Return what an update reads in place of a leaf that is given to autograd.grad.

    A view: modules that count gradients through hooks cannot do so on such a leaf.
    """
    return leaf.view_as(leaf) if requires_grad(leaf) else leaf
