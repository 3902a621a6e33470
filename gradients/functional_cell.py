"""A cell as a function of explicit tensors: state, inputs and everything it reads beside them go in as arguments.

An estimator that is one autograd.Function over the recursion needs this: what is not an argument gets no gradient.
Nothing is written into the module. An update that is run again reads the parameters themselves, and autograd.grad with
respect to them leaves their accumulators, and so the hooks of DDP, alone; other tensors are replaced by identity.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.overrides import _len_torch_function_stack

from loopgrad.gradients import tree
from loopgrad.gradients.contract import run
from loopgrad.gradients.graphs import alias, is_floating, leaf_view
from loopgrad.gradients.outputs import Taken
from loopgrad.gradients.reading import Kept, Reading, kept
from loopgrad.gradients.stationary import closed_over
from loopgrad.gradients.stepwise import Steps, axis_of
from loopgrad.gradients.substituted import Substituted


class FunctionalCell:
    """The updates start..stop-1 of a cell, with all that they depend on passed as tensors.

    Attributes:
        state: Leaves of the initial state; those that are not floating tensors are carried along.
        others: Every other tensor that the cell reads and that gets a gradient: tensor leaves of inputs, parameters
            that require grad, tensors that a `Stationary` closes over, and what the first updates were seen to read.
        num_inputs: How many of them, the first, are inputs.
        scanned: Which of them have one part per update, of which an update reads its own.
        attributes: What the cell keeps in attributes before the first update.
        kept: What updates without a graph have left in attributes, and no update that is run again may read.
    """

    def __init__(self, cell: nn.Module, state: Any, inputs: Any):
        self.cell = cell
        self.state, self.unflatten_state = tree.flatten(state)
        self._input_leaves, self._unflatten_inputs = tree.flatten(inputs)
        given = tree.tensors(inputs)
        # where each module but a scripted one had each parameter: in backward it may have another there, as after
        # functional_call
        own = [module._parameters for module in cell.modules() if isinstance(module._parameters, dict)]
        self._places = [(each, name, p) for each in own for name, p in each.items() if p is not None]
        found = kept(cell)
        self.attributes, loose = Kept(found), [tensor for _, tensor in found.values() if tensor.is_leaf]
        known = {id(t): t for t in (*cell.parameters(), *closed_over(cell), *loose) if t.requires_grad}
        if any(isinstance(parameter, UninitializedParameter) for parameter in cell.parameters()):
            raise RuntimeError(
                "the cell has lazy parameters whose sizes are not known yet: call cell(state, inputs, 0) once under "
                "torch.no_grad() before"
            )
        self.num_inputs, self.others = len(given), [*given, *known.values()]
        steps = inputs if isinstance(inputs, Steps) else Steps(inputs)
        first = len(tree.tensors(steps.inputs))
        self.scanned, self.axis = range(first, first + len(tree.tensors(steps.xs))), steps.axis
        self.kept = Kept({})

    @property
    def own(self) -> list[Tensor]:
        """The tensors that the cell reads by itself, without being given them."""
        return self.others[self.num_inputs :]

    @property
    def sources(self) -> list[Tensor]:
        """What a rollout is differentiated by: floating leaves of the state, then `others`.

        Within another recursion that replaces tensors, these are what they are replaced by.
        """
        replaced = _len_torch_function_stack() > 0
        others = [t.view_as(t) if replaced and t.requires_grad else t for t in self.others]
        return [*filter(is_floating, self.state), *others]

    @property
    def frozen(self) -> list[Tensor]:
        """Parameters that did not require grad; where they do now, they get no gradient all the same."""
        known = set(map(id, self.others))
        return [p for _, _, p in self._places if isinstance(p, nn.Parameter) and id(p) not in known]

    def stand_ins(self, wanted: Sequence[bool]) -> list[Tensor]:
        """Return leaves for autograd.grad in place of `others`: each parameter itself, an alias of any other tensor.

        A parameter with hooks of its own is another such tensor, or its hooks would fire once per product; and so is
        one that another recursion around this one replaces.
        """
        found, replaced = [], _len_torch_function_stack() > 0
        for i, (tensor, needed) in enumerate(zip(self.others, wanted, strict=True)):
            itself = i >= self.num_inputs and needed and tensor.is_leaf and not (replaced or tensor._backward_hooks)
            found.append(tensor if itself else alias(tensor, needed))
        return found

    def leaf_views(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Return what an update reads in place of `others`, given leaves: inputs as views, the rest as they are."""
        return [leaf_view(leaf) if i < self.num_inputs else leaf for i, leaf in enumerate(leaves)]

    def of_updates(self, whole: Tensor, start: int, stop: int) -> Tensor:
        """Return the part of a scanned tensor that some updates read, in its memory."""
        return whole.detach().narrow(axis_of(whole, self.axis), start, stop - start)

    def narrowed(self, others: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
        """Return stand-ins for `others` that hold of scanned tensors what some updates read."""
        found = list(others)
        for i in self.scanned:
            found[i] = alias(self.of_updates(others[i], start, stop), others[i].requires_grad)
        return found

    def run_on(
        self,
        state: Sequence[Any],
        others: Sequence[Tensor],
        buffers: dict[str, Tensor],
        start: int,
        stop: int,
        first: int = 0,
        answers: Taken | None = None,
    ) -> list[Any]:
        """Run updates with `others` in place of the cell's own tensors; see `call`."""

        def updates(cell: nn.Module, inputs: Any) -> Any:
            return run(cell, self.unflatten_state(list(state)), inputs, range(start, stop))

        return tree.flatten(self.call(updates, others, buffers, first, answers))[0]

    def call(
        self,
        fn: Callable[[nn.Module, Any], Any],
        others: Sequence[Tensor],
        buffers: dict[str, Tensor],
        first: int = 0,
        answers: Taken | None = None,
    ) -> Any:
        """Return fn(cell, inputs), run with `others`, and buffers by name, in place of the cell's own tensors.

        Args:
            fn: What is run.
            others: In place of `others`; scanned ones may be narrowed to some updates.
            buffers: By name.
            first: Number of the first update that scanned ones hold.
            answers: Takes what a readout gives.
        """
        queue = iter(others)
        inputs = self._unflatten_inputs(
            [next(queue) if isinstance(leaf, Tensor) else leaf for leaf in self._input_leaves]
        )
        if isinstance(inputs, Steps):
            inputs = replace(inputs, first=first, answers=answers)
        queue = list(queue)
        stands = dict(zip(map(id, self.own), queue, strict=True))
        moved = [(each[name], stands.get(id(t), t)) for each, name, t in self._places if each.get(name) is not t]
        moved = [(now, then) for now, then in moved if now is not None]
        live = dict(self.cell.named_buffers()) if buffers else {}
        old = [*self.own, *(now for now, _ in moved), *(live[name] for name in buffers)]
        new = [*queue, *(then for _, then in moved), *buffers.values()]
        if not self.kept:
            with Substituted(old, new):
                return fn(self.cell, inputs)
        with Substituted(old, new), Reading([*tree.tensors(inputs), *new]) as reading:
            found = fn(self.cell, inputs)
        self.kept.check(reading.found)
        return found
