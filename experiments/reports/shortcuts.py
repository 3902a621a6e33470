"""One sentence for each comparison of several: which shortcuts cost accuracy, at which cosine and residual."""

from collections.abc import Sequence

from loopgrad.experiments.records import RunRecord
from loopgrad.experiments.reports.summary import (
    RESIDUAL,
    by_estimator,
    judged,
    reading,
    score,
    significant,
    spread,
)

# how seeds lie beside those of BPTT, in words for one estimator and for several
EVEN, LOWER, BELOW, ABOVE = "even", "lower", "below", "above"
WORDS = {
    EVEN: ("costs no accuracy that these seeds show", "cost no accuracy that these seeds show"),
    LOWER: ("costs no more accuracy than seeds differ by", "cost no more accuracy than seeds differ by"),
    BELOW: ("costs more accuracy than seeds differ by", "cost more accuracy than seeds differ by"),
    ABOVE: ("gains more accuracy than seeds differ by", "gain more accuracy than seeds differ by"),
}


def sentence(records: Sequence[RunRecord], name: str = "") -> str:
    """Return what each estimator gave beside BPTT's seeds, after the name of the comparison; all shown as it stands."""
    groups = by_estimator(records)
    base = groups.pop("bptt", None)
    if base is None:
        return f"{name}: {reading(records)}" if name else reading(records)
    key, words = judged(records)
    seeds, first = len({record["seed"] for record in records}), records[0]
    scale = f"{seeds} seeds" if seeds > 1 else "one seed, so without a spread"
    clauses = [f"BPTT {words.format(score(base, key))}{_brackets(base, cosine=False)}"]
    exact = [name for name, group in groups.items() if group[0]["kind"] == "exact"]
    if exact:
        clauses.append(f"{_several([f'{it} {score(groups[it], key)}' for it in exact])} with the same gradient")
    told: dict[str, list[str]] = {}
    for it in (it for it in groups if it not in exact):
        told.setdefault(beside(groups[it], base, key), []).append(it)
    for verdict, names in told.items():
        each = [f"{it} {score(groups[it], key)}{_brackets(groups[it])}" for it in names]
        clauses.append(" ".join(filter(None, (_several(each), WORDS[verdict][len(names) > 1] if verdict else ""))))
    start = f"{name}: after" if name else "After"
    return (
        f"{start} {first['train_steps']} steps of {first['model']} on {first['task']} ({scale}), {'; '.join(clauses)}."
    )


def beside(group: Sequence[RunRecord], base: Sequence[RunRecord], key: str) -> str:
    """Return how the seeds of an estimator lie beside those of BPTT; "" where one of them has fewer than two.

    Below or above is what a gap separates that is wider than either group of seeds.
    """
    if min(_known(group, key), _known(base, key)) < 2:
        return ""
    mine, others = spread(group, key), spread(base, key)
    width = max(mine.high - mine.low, others.high - others.low)
    if others.low - mine.high > width:
        return BELOW
    if mine.low - others.high > width:
        return ABOVE
    return LOWER if mine.mean < others.low else EVEN


def _known(records: Sequence[RunRecord], key: str) -> int:
    return len({record["seed"] for record in records if record.get(key) is not None})


def _brackets(records: Sequence[RunRecord], cosine: bool = True) -> str:
    """Return the cosine of the gradient and the residual where it is taken, as far as they are known."""
    told = []
    if cosine and (angle := spread(records, "gradient_cosine").mean) == angle:
        told.append(f"cosine {angle:.2f}")
    if (residual := spread(records, *RESIDUAL).mean) == residual:
        told.append(f"residual {significant(residual)}")
    return f" ({', '.join(told)})" if told else ""


def _several(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))
