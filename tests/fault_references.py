"""What gradient each estimator promises, by plain loops, so that a fault that does not reach it changes nothing."""

import torch
from faulty_cells import BATCH, STEPS, case_of, leaves_of

from loopgrad.gradients.depth_distribution import DepthDistribution
from loopgrad.gradients.noise import Noise, fresh_seed, own_generator


def packed(leaves):
    return tuple(leaves) if len(leaves) > 1 else leaves[0]


def run(case, state, steps):
    for step in steps:
        state = case.cell(state, case.inputs, step)
    return state


def detached(state):
    return packed([leaf.detach() for leaf in leaves_of(state)])


def gradients(sources, loss):
    if not loss.requires_grad:
        return [None] * len(sources)
    return list(torch.autograd.grad(loss, sources, allow_unused=True))


def bptt(case, cell=None):
    """The loop itself, also through a coupling."""
    state = case.state if cell is None else cell.couple(case.state)
    for step in range(STEPS):
        state = (cell or case.cell)(state, case.inputs, step)
    loss = case.value(state if cell is None else cell.read(state))
    return loss, gradients(case.sources(), loss)


def forward_mode(case):
    """The loop in reverse, or in forward mode where only the former meets 0 times infinity."""
    loss, found = bptt(case)
    if loss.isfinite() and not all(g.isfinite().all() for g in found[:2]):
        names = [name for name, _ in case.cell.named_parameters()]

        def of_parameters(*values):
            def step(state, number):
                return torch.func.functional_call(
                    case.cell, dict(zip(names, values, strict=True)), (state, case.inputs, number)
                )

            state = case.state
            for number in range(STEPS):
                state = step(state, number)
            return case.value(state)

        found[:2] = torch.func.jacfwd(of_parameters, argnums=(0, 1))(*(p.detach() for p in case.cell.parameters()))
    return loss, found


def truncated(case, k):
    state = run(
        case,
        run(case, case.state, range(STEPS - k)) if k >= STEPS else detached(run(case, case.state, range(STEPS - k))),
        range(STEPS - k, STEPS),
    )
    loss = case.value(state)
    return loss, gradients(case.sources(), loss)


def phantom(case, k, damping):
    last = detached(run(case, case.state, range(STEPS)))
    ahead = last
    for _ in range(k):
        image = run(case, ahead, [STEPS - 1])
        pairs = zip(leaves_of(ahead), leaves_of(image), strict=True)
        ahead = image if damping == 1 else packed([a + damping * (b - a) for a, b in pairs])
    ends = [leaf.requires_grad_() for leaf in leaves_of(last)]
    loss = case.value(packed(ends))
    b = torch.autograd.grad(loss, ends)
    return loss, list(torch.autograd.grad(leaves_of(ahead), case.sources(), b, allow_unused=True))


def random_truncation(case, mean, seed):
    depths = DepthDistribution(mean, "geometric", 0.5)
    k = min(STEPS, depths.sample(torch.Generator().manual_seed(fresh_seed(own_generator(seed)))))
    state = run(case, case.state, range(STEPS - k))
    state = state if k == STEPS else detached(state)
    for step in range(STEPS - k, STEPS):
        far = STEPS - step
        if step > STEPS - k:
            weight = depths.survival(far - 1) / depths.survival(far)
            state = packed([leaf.clone() for leaf in leaves_of(state)])
            for leaf in leaves_of(state):
                leaf.register_hook(lambda g, weight=weight: g * weight)
        state = case.cell(state, case.inputs, step)
    loss = case.value(state)
    return loss, [
        torch.zeros_like(s) if g is None else g
        for s, g in zip(case.sources(), gradients(case.sources(), loss), strict=True)
    ]


def uoro(case, num_tangents, window, seed):
    """The adjoints of a forward gradient, with dense Jacobians row by row."""
    first, rows = STEPS - window, lambda state: torch.cat(leaves_of(state), 1)
    noise = Noise(fresh_seed(own_generator(seed)), range(num_tangents), "rademacher", torch.device("cpu"))
    state, u, drawn, states = detached(case.state), None, [], []
    for step in range(first):
        leaves = [leaf.detach().requires_grad_() for leaf in leaves_of(state)]
        states.append(leaves)

        def update(*given, step=step):
            return tuple(leaves_of(case.cell(packed(given), case.inputs.detach(), step)))

        if u is not None:

            def flat(z, step=step):
                return rows(packed(update(*z.split(z.shape[1] // case.cell.leaves, dim=1), step=step)))

            z = torch.cat(leaves, 1).detach()
            jacobian = torch.autograd.functional.jacobian(flat, z)
            u = torch.einsum("rfsg,ksg->krf", jacobian, u)
        state = detached(packed(update(*leaves)))
        if step < first - 1:
            xi = noise.draw(rows(state).shape, state[0].dtype if isinstance(state, tuple) else state.dtype)
            drawn.append(xi)
            u = xi if u is None else u + xi
    ends = [leaf.requires_grad_() for leaf in leaves_of(state)]
    loss = case.value(run(case, packed(ends), range(first, STEPS)))
    sources = [*case.sources()]
    total = list(torch.autograd.grad(loss, sources, allow_unused=True, retain_graph=True))
    total = [torch.zeros_like(s) if g is None else g for s, g in zip(sources, total, strict=True)]
    g = torch.cat(torch.autograd.grad(loss, ends), 1)
    c = torch.einsum("krf,rf->kr", u, g) / num_tangents
    for step in range(first):
        adjoint = g if step == first - 1 else torch.einsum("kr,krf->rf", c, drawn[step])
        leaves = leaves_of(case.state) if step == 0 else states[step]
        image = leaves_of(case.cell(packed(leaves), case.inputs, step))
        found = torch.autograd.grad(
            image, sources, adjoint.split(adjoint.shape[1] // len(image), dim=1), allow_unused=True
        )
        total = [t if f is None else t + f for t, f in zip(total, found, strict=True)]
    return loss, total


def implicit(spec, last, verdict, start=None, window=8):
    """The gradient of the parameters, sample by sample as the verdict has it, with a dense solve.

    Args:
        spec: Arguments of `case_of`.
        last: Leaves of the last state of the estimator.
        verdict: (finite, trusted), a list of bools each.
        start: The state that the fallback starts from, if not that of the recursion.
        window: Length of the fallback.
    """
    total = None
    for row in range(BATCH):
        finite, trusted = (flags[row] for flags in verdict)
        if not finite:
            continue
        case = case_of(*spec, row=row, again=False)
        z = packed([leaf[row : row + 1].detach().requires_grad_() for leaf in last])
        parameters = [*case.cell.parameters()]
        if trusted:
            b = torch.cat(torch.autograd.grad(case.value(z), leaves_of(z)), 1)[0]

            def f(flat, case=case, z=z):
                parts = flat.split(len(flat) // len(leaves_of(z)))
                image = run(case, packed([p.unsqueeze(0) for p in parts]), [STEPS - 1])
                return torch.cat(leaves_of(image), 1)[0]

            flat = torch.cat(leaves_of(z), 1)[0].detach()
            jacobian = torch.autograd.functional.jacobian(f, flat)
            w, singular = torch.linalg.solve_ex(torch.eye(len(b), dtype=b.dtype) - jacobian.T, b)
            w = torch.where(singular > 0, torch.nan, w)
            found = torch.autograd.grad(f(flat), parameters, w, allow_unused=True)
        else:
            if start is not None:
                state = run(case, detached(z), range(STEPS - window, STEPS))
                given = [leaf.detach().requires_grad_() for leaf in leaves_of(z)]
                b = torch.autograd.grad(case.value(packed(given)), given)
                found = torch.autograd.grad(leaves_of(state), parameters, b, allow_unused=True)
            else:
                state = detached(run(case, case.state, range(STEPS - window)))
                loss = case.value(run(case, state, range(STEPS - window, STEPS)))
                found = torch.autograd.grad(loss, parameters, allow_unused=True) if loss.requires_grad else [None] * 2
        found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
    return total if total is not None else [torch.zeros_like(p) for p in case_of(*spec, again=False).cell.parameters()]
