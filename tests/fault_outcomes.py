"""What comes of a fault under an estimator: what it promises all the same, or something that says so."""

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import fault_references as promised
import torch
from fault_estimators import ROWS, Row
from faulty_cells import BATCH, STEPS, case_of, drawn, leaves_of

PLACES = (
    ("image", "always"),
    ("image", "later"),
    ("image", 2),
    ("image", 3),
    ("derivative", "always"),
    ("weight", "always"),
    ("input", "always"),
    ("start", "always"),
)


def specs(name, count, seed):
    """Yield arguments of `case_of`, drawn at random for one estimator; the places of faults take turns."""
    draw, kinds = torch.Generator().manual_seed(seed), ROWS[name].kinds

    def below(bound):
        return int(torch.randint(bound, (), generator=draw))

    for i in range(count):
        place, when = PLACES[i % len(PLACES)]
        if "budget" in name and isinstance(when, int):
            continue  # it first runs an update apart from the recursion
        if "central" in name and place == "derivative":
            continue  # differences know of no derivatives
        leaves, loss = 1 + below(2), ("square", "tanh", "others")[below(3)]
        dtype = torch.float64 if "central" in name or below(2) else torch.float32
        fault = drawn(draw, place, when, leaves)
        if "torchdeq" in name:
            fault = replace(fault, update=STEPS - 1)  # the only one that it runs
        yield kinds[below(len(kinds))], leaves, dtype, loss, fault


@dataclass
class Attempt:
    """The loss and gradients as an estimator gives them, and what it had to say."""

    loss: Any = None
    gradients: list = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    stats: Any = None
    last: Any = None


def attempt(row: Row, spec) -> Attempt:
    case, found = case_of(*spec), Attempt()
    cell = case.cell if row.coupling is None else row.coupling(case.cell)
    if row.only == "projection":
        for source in case.sources()[2:]:
            source.requires_grad_(False)
    if hasattr(row.estimator, "generator"):
        row.estimator.generator.manual_seed(row.estimator.seed)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            rollout = row.estimator(cell, case.state, case.inputs, STEPS)
            found.last = [leaf.detach() for leaf in leaves_of(rollout.state)]
            found.loss = case.value(rollout.state)
            case.cell.later = True
            found.gradients = promised.gradients([s for s in case.sources() if s.requires_grad], found.loss)
            found.stats = rollout.stats
        except (RuntimeError, ValueError) as error:
            found.flags.append(f"error: {error}")
    found.flags += [f"warning: {w.message}" for w in said]
    if found.stats is not None:
        numbers = found.stats.numbers()
        says = {
            "loss": not found.loss.isfinite(),
            "gradient": not all(g.isfinite().all() for g in found.gradients if g is not None),
            "finite": numbers.get("finite", 1) < 1,
            "trusted": numbers.get("trusted", 1) < 1,
            "stopped": numbers.get("stopped", 0) > 0,
            "residual": not numbers.get("residual", 0) < 0.9,
            "doubt": not numbers.get("doubt", 0) < 0.02,
        }
        found.flags += [name for name, said in says.items() if said]
    return found


def expected(row: Row, spec, found: Attempt):
    """Return the loss and the gradients that are promised."""
    case = case_of(*spec, again=False)
    if row.coupling is not None:
        loss, found = promised.bptt(case, row.coupling(case.cell))
        if row.wide is not None and finite([loss]) and not finite(found):  # it adds in float32 what overflows there
            case = case_of(*spec, again=False)
            return promised.bptt(case, row.wide(case.cell))
        return loss, found
    if row.reference != "implicit":
        return row.reference(case)
    if found.last is None or found.stats is None:
        return promised.bptt(case)
    verdict, forward = found.stats.verdict, row.estimator.forward
    if verdict is None:
        kept = trusted = torch.ones(BATCH, dtype=torch.bool)
    else:
        kept, trusted = verdict.finite, verdict.trusted
    if row.estimator.on_unconverged in ("ignore", "warn"):
        trusted = kept
    start, window = None if forward == "unroll" else found.last, row.estimator.window(case.cell, STEPS)
    flags = kept.expand(BATCH).tolist(), trusted.expand(BATCH).tolist()
    return case.value(promised.packed(found.last)), promised.implicit(spec, found.last, flags, start, window)


def finite(values) -> bool:
    return all(bool(value.isfinite().all()) for value in values if value is not None)


def close(a, b, tolerance):
    a, b = torch.broadcast_tensors(*(torch.zeros(()) if g is None else g.detach().double() for g in (a, b)))
    return bool(((a - b).abs() <= tolerance * b.abs().amax().clamp(min=1e-3)).all())


def projected(wanted, got, tolerance):
    """Whether the one tangent is weighed by the gradient along it: got = (wanted . v) v with v of signs."""
    along = sum((a.double() * b.double()).sum() for a, b in zip(wanted, got, strict=True))
    square = got[0].double().square().mean()
    slack = 1e-3 * square.sqrt() * sum(a.double().norm() for a in wanted)
    return bool((along - square).abs() <= slack) or close(along, square, max(1e-4, tolerance))


def outcome(name: str, spec) -> tuple[str, Attempt]:
    """Return what came of it, in a word.

    "equal": what is promised, and finite. "flagged": something says so. "refused" and "spoilt": an error, or another
    flag, although what is promised is finite and the fault is in the recursion itself. "unseen" and "wrong": a finite
    loss with a finite gradient and no flag, where what is promised is not finite, or something else.
    """
    row, found = ROWS[name], attempt(ROWS[name], spec)
    loss, wanted = expected(row, spec, found)
    wanted = wanted if row.only == "all" else wanted[:2]
    got, sound = found.gradients[: len(wanted)], finite([loss, *wanted])
    tolerance, single = row.tolerance, spec[2] == torch.float32
    if tolerance or spec[4].when != "always":  # what is not of the recursion may have been forgotten as far as rounding
        tolerance = max(tolerance, 5e-3 if single else 1e-7)
    if sound and found.stats is not None and close(found.loss, loss, max(1e-6, tolerance)) and finite(got):
        if row.only == "projection" and projected(wanted, got, tolerance):
            return "equal", found
        if row.only != "projection" and all(close(a, b, tolerance) for a, b in zip(got, wanted, strict=True)):
            return "equal", found
    if "weights central" in name and not sound and finite([loss, *got]) and spec[4].when == "always":
        return "equal", found  # the map is finite around the point, whatever autograd makes of it
    if row.only == "nothing" and finite([loss]) and found.stats is not None:
        return "as the peer has it", found
    if not found.flags:
        return "wrong" if sound else "unseen", found
    if sound and spec[4].when == "always":
        case = case_of(*spec)
        reaches = not finite([*promised.bptt(case)[1]])
        return "refused" if found.stats is None else "flagged" if reaches else "spoilt", found
    return "flagged", found
