"""Every estimator beside the loop that says what it promises of a faulty cell."""

import importlib.util
from dataclasses import dataclass
from functools import partial
from typing import Any

import fault_references as promised
from faulty_cells import KINDS

from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    ForwardGradient,
    ForwardMode,
    ImplicitGradient,
    PhantomGradient,
    RandomTruncation,
    ReversibleBPTT,
    TorchDEQ,
    TruncatedBPTT,
)
from loopgrad.gradients.solvers import LINEAR, Anderson, Broyden, Iteration
from loopgrad.models import Damped, Leapfrog, Momentum

ROWWISE = tuple(kind for kind in KINDS if kind != "mixing")


@dataclass
class Row:
    """An estimator, the loop that says what it promises, and the cells on which that is so."""

    estimator: Any
    reference: Any = promised.bptt
    kinds: tuple[str, ...] = KINDS
    coupling: Any = None
    wide: Any = None  # the same coupling in float64, where this one has float32
    tolerance: float = 1e-9
    only: str = "all"  # of the sources whose gradients are compared: "all", "parameters", "projection", "nothing"


IMPLICIT = {"rtol": 1e-10, "max_vjps": 60, "check_every": 1}
ROWS = {"bptt": Row(BPTT(), tolerance=0.0)}
for name, how in {
    "sqrt": {},
    "1": {"schedule": 1},
    "5": {"schedule": 5},
    "12": {"schedule": 12},
    "binomial 0": {"schedule": "binomial", "num_snapshots": 0},
    "binomial 2": {"schedule": "binomial", "num_snapshots": 2},
    "offload": {"offload": "cpu"},
    "budget": {"memory_budget": "16KiB"},
}.items():
    ROWS[f"checkpointed {name}"] = Row(CheckpointedBPTT(**how), tolerance=0.0)
for name, coupling in {
    "damped": Damped,
    "damped 1/4": lambda cell, **how: Damped(cell, "1/4", **how),
    "leapfrog": lambda cell, **how: Leapfrog(cell, 0.3, **how),
    "momentum": Momentum,
}.items():
    for arithmetic in ("exact", "float64", "float32"):
        for anchors in (None, 4):
            key = f"reversible {name} {arithmetic}" + (" anchors" if anchors else "")
            estimator = ReversibleBPTT(anchors=anchors)
            tolerance = {"exact": 0.0, "float64": 1e-6, "float32": 1e-2}[arithmetic]

            def coupled(cell, coupling=coupling, arithmetic=arithmetic):
                return coupling(cell, arithmetic=arithmetic)

            wide = partial(coupled, arithmetic="float64") if arithmetic == "float32" else None
            ROWS[key] = Row(estimator, coupling=coupled, wide=wide, tolerance=tolerance)
for k in (1, 4, 12):
    ROWS[f"truncated {k}"] = Row(TruncatedBPTT(k), lambda case, k=k: promised.truncated(case, k))
for k, damping in ((1, 1.0), (4, 0.5)):
    ROWS[f"phantom {k}"] = Row(PhantomGradient(k, damping), lambda c, k=k, d=damping: promised.phantom(c, k, d))
for seed in (0, 3):
    ROWS[f"random truncation {seed}"] = Row(
        RandomTruncation(3, seed=seed), lambda case, seed=seed: promised.random_truncation(case, 3, seed)
    )
for solver in LINEAR:
    ROWS[f"implicit {solver}"] = Row(
        ImplicitGradient(solver, **IMPLICIT), "implicit", ROWWISE, tolerance=1e-4, only="parameters"
    )
for name, how in {
    "as it comes": {},
    "loose": {"forward_rtol": 10, "max_gradient_error": 0.9, **IMPLICIT},
    "warn": {"on_unconverged": "warn", **IMPLICIT},
    "raise": {"on_unconverged": "raise", **IMPLICIT},
    "ignore": {"on_unconverged": "ignore", **IMPLICIT},
    "exact fallback": {"forward_rtol": 0, "fallback": CheckpointedBPTT(), **IMPLICIT},
    "batch": {"scope": "batch", **IMPLICIT},
}.items():
    ROWS[f"implicit {name}"] = Row(
        ImplicitGradient(**how), "implicit", ROWWISE, tolerance=0.05 if not how else 1e-4, only="parameters"
    )
for name, forward in {
    "iteration": Iteration(),
    "damped": Iteration(0.5),
    "anderson": Anderson(),
    "broyden": Broyden(),
}.items():
    ROWS[f"implicit, {name} forward"] = Row(
        ImplicitGradient(forward=forward, **IMPLICIT), "implicit", ROWWISE, tolerance=1e-4, only="parameters"
    )
ROWS["forward mode"] = Row(ForwardMode(), promised.forward_mode, only="parameters")
ROWS["forward mode chunked"] = Row(ForwardMode(chunk_size=5), promised.forward_mode, only="parameters")
for mode in ("jvp", "central"):
    low = 1e-9 if mode == "jvp" else 1e-2
    ROWS[f"forward gradient weights {mode}"] = Row(
        ForwardGradient(1, "weights", 0, mode=mode, seed=2), promised.forward_mode, only="projection", tolerance=low
    )
    for window in (0, 3):
        ROWS[f"forward gradient state {mode} {window}"] = Row(
            ForwardGradient(3, "state", window, mode=mode, seed=2),
            lambda case, window=window: promised.uoro(case, 3, window, 2),
            ROWWISE,
            tolerance=low,
        )
ROWS["forward gradient state chunked"] = Row(
    ForwardGradient(3, chunk_size=2, seed=2), lambda case: promised.uoro(case, 3, 1, 2), ROWWISE
)
if importlib.util.find_spec("torchdeq"):
    for gradient, solver in (
        ("ift", "fixed_point_iter"),
        ("ift", "anderson"),
        ("ift", "broyden"),
        ("hook_ift", "broyden"),
        ("phantom", "broyden"),
    ):
        deq = TorchDEQ(gradient, f_solver=solver, b_solver=solver, f_tol=1e-9, b_tol=1e-10, b_max_iter=60)
        ROWS[f"torchdeq {gradient} {solver}"] = Row(deq, kinds=ROWWISE, only="nothing")
