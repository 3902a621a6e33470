"""A coupled recursion run and undone by hand, update after update, as a witness for what undoes it elsewhere."""

import torch
from problems import leaves_of

from loopgrad.gradients import tree


def run_forward(cell, state, inputs, num_steps):
    """Return every state and note."""
    states, notes = [cell.couple(state)], []
    for step in range(num_steps):
        states.append(cell(states[-1], inputs, step))
        notes.append(cell.note(states[-2], states[-1], step))
    return states, notes


def same(one, other):
    """Whether two leaves agree to the bit, in dtype and shape, or as plain values."""
    if not isinstance(one, torch.Tensor):
        return type(one) is type(other) and one == other
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def same_state(one, other):
    return all(map(same, tree.flatten(one)[0], tree.flatten(other)[0]))


def undone_gradients(cell, state, inputs, num_steps, loss):
    """Return the last plain state and the gradients of z_0's coupled copies and of the parameters."""
    with torch.no_grad():
        states, notes = run_forward(cell, state, inputs, num_steps)
    leaves, unflatten = tree.flatten(states[-1])
    leaves = [
        leaf.detach().requires_grad_() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf
        for leaf in leaves
    ]
    loss(cell.read(unflatten(leaves))).backward()
    grads = [leaf.grad if isinstance(leaf, torch.Tensor) else None for leaf in leaves]
    after = states[-1]
    for step in reversed(range(num_steps)):
        undone = cell(after, inputs, step, notes[step])
        met = [(part.current, part.other) for part in (undone.before, states[step])]
        assert same_state(*met) or not cell.exact
        seeds, grads = cell.pull(undone.images, grads)
        grads = list(grads)
        pairs = [(i, g) for i, g in zip(undone.images, seeds, strict=True) if i is not None and g is not None]
        pairs = [(image, seed) for image, seed in pairs if image.requires_grad]
        for i, (read, grad) in enumerate(zip(undone.reads, grads, strict=False)):
            if read is not None and grad is not None and grad.dtype == read.dtype:
                pairs.append((read, grad))
                grads[i] = None
        if pairs:
            torch.autograd.backward(*zip(*pairs, strict=True))
        before = tree.flatten(undone.before)[0]
        for i, read in enumerate(undone.reads):
            if read is not None and read.grad is not None:
                grad = read.grad.to(before[i].dtype)
                grads[i] = grad if grads[i] is None else grads[i] + grad
        after = undone.before
    return cell.read(states[-1]), grads, after


def gradients_by_hand(cell, state, inputs, num_steps, loss, parameters):
    """Return (last state, gradients of the floating leaves of `state`, of parameters), by undoing."""
    for parameter in parameters:
        parameter.grad = None
    last, grads, _ = undone_gradients(cell, state, inputs, num_steps, loss)
    found = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    flat = tree.flatten(cell.couple(state))[0]
    pairs = [(leaf, g) for leaf, g in zip(flat, grads, strict=False) if g is not None and leaf.requires_grad]
    sources = [leaf for leaf in leaves_of(state) if leaf.requires_grad]
    outputs, seeds = zip(*pairs, strict=True)
    return last, [*torch.autograd.grad(outputs, sources, seeds, allow_unused=True), *found]


def gradients_by_bptt(cell, state, inputs, num_steps, loss, parameters):
    """The same by one graph of all updates."""
    coupled = cell.couple(state)
    for step in range(num_steps):
        coupled = cell(coupled, inputs, step)
    sources = [leaf for leaf in leaves_of(state) if leaf.requires_grad]
    last = cell.read(coupled)
    return last, list(torch.autograd.grad(loss(last), [*sources, *parameters], allow_unused=True))
