"""Made-up records of claims, whose readings, costs and curves a test chooses."""

MADE = {
    "commit": "16470b2241b5",
    "versions": {"python": "3.11.7", "torch": "2.13.0+cpu"},
    "date": "2026-11-24",
    "command": "loopgrad claims made_up",
    "device": "Intel(R) Xeon(R) Processor, 2 of 2 cores",
}


def trained(condition, seed, steps=100, flops=1e9, curve=None, overrides=(), **readings):
    """A training; `curve` maps steps to shares."""
    curve = curve or {steps: readings.get("exact", 0.0)}
    return {
        "condition": condition,
        "seed": seed,
        "train_steps": steps,
        "parameters": 1234,
        "readings": {"exact": 0.0, **{name.replace("__", "@"): value for name, value in readings.items()}},
        "saved_bytes": 2.0**20,
        "peak_bytes": 2.0**21,
        "flops": flops,
        "train_seconds": 7.0,
        "curve": {
            "step": list(curve),
            "exact_accuracy": list(curve.values()),
            "token_accuracy": list(curve.values()),
        },
        "overrides": list(overrides),
    }


def record(trainings, contrasts=None, **changed):
    """A record of a claim; by default it says that `deep` solves more than `shallow`."""
    more = {"says": "deep solves more than shallow", "more": "deep", "less": "shallow"}
    return {
        "claim": "made_up",
        "size": "tiny",
        "title": "Made up",
        "statement": "Deep is better than shallow (Nobody 2025).",
        "sources": ["nobody2025"],
        "published": "nothing.",
        "change": "anything.",
        "equal": "both take the same number of steps",
        "figure": "learning",
        "contrasts": {"more": more} if contrasts is None else contrasts,
        "every": [],
        "trainings": trainings,
        **MADE,
        **changed,
    }


def compared(deep, shallow, at="exact", **contrast):
    """A record of two conditions with a value per seed each; None for a seed without the reading."""
    name = at.replace("@", "__")
    conditions = {"deep": deep, "shallow": shallow}
    trainings = [
        trained(condition, seed, **({} if value is None else {name: value}))
        for condition, values in conditions.items()
        for seed, value in enumerate(values)
    ]
    if at == "exact":
        for it, value in zip(trainings, [*deep, *shallow], strict=True):
            it["readings"]["exact"] = value
    said = {"says": "deep solves more than shallow", "more": "deep", "less": "shallow", "at": at, **contrast}
    return record(trainings, {"more": said})
