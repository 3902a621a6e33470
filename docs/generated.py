"""Pages made from the package and the records while the site builds: estimators, packages and the gallery.

A new estimator, and a new figure beside its record, have their place without anyone thinking of it.
"""

import json
import re
from pathlib import Path
from types import ModuleType

from rendered import folders, pages
from sphinx.application import Sphinx

from loopgrad import analysis, gradients, models
from loopgrad.analysis import plots
from loopgrad.experiments import tasks

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MARK = "% made by generated.py"
KINDS = {
    "exact": "Exact",
    "exact at a fixed point": "Exact at a fixed point",
    "unbiased": "Unbiased, with noise",
    "biased": "Biased",
}
DRAWN = {
    "comparison": "Accuracy, saved bytes and gradient cosine of the estimators.",
    "sweep": "The same of several comparisons, a row for each.",
    "residuals": "Residuals of the recursion over its updates.",
    "eigenvalues": "Eigenvalues of the cycle map at the last state.",
    "heatmap": "Residual of every sample over the updates.",
    "memory": "Bytes saved for backward as the number of updates grows.",
    "recurrence": "Distances between the states of a trajectory: recurrence plot.",
    "trajectories": "Trajectories of single samples in the plane of their principal components.",
    "validity": "Error of a gradient against the residual where it is taken.",
    "verdicts-training": "Verdicts at the depth of training.",
    "verdicts-extrapolated": "Verdicts when the recursion is followed four times as deep.",
    "groups": "Held-out accuracy by group, such as the number of hops.",
    "families-figure": "Relative error of every family of gradients against peak memory.",
    "forward-figure": "Cosine of forward gradients with the exact gradient.",
    "online-figure": "Held-out loss under online gradients against FLOPs and against peak memory.",
    "online-chrono-figure": "The same from gates that begin open to the past, at delays of 10, 20 and 100.",
    "parallel-figure": "Updates over operations in a chain, against the largest Lyapunov exponent.",
    "rolling_sum-figure": "Held-out loss against FLOPs and against peak memory.",
    "text-figure": "Held-out loss of a language model against FLOPs and against peak memory.",
    "validity-figure": "Gradient error of estimators against residual and spectral radius.",
}

GALLERY = """Every figure of the results, with the command that made it; a click shows one in full.
What was found is also told by [pages with curves](guides/reports.md), whose tables sort and whose marks tell their
values: save one and open it anywhere."""

PACKAGES = {
    models: "What is iterated: layers, cells, recursive models, halting and deep supervision. "
    "Couplings have [a page of their own](../couplings.md).",
    analysis: "What happened: what a gradient cost, how far it is from the exact one, and where the recursion went.",
    plots: "Figures of an analysis, each with the numbers behind its marks as a table. They need the extra `[plots]`.",
    tasks: "Seeded puzzles with a token spec, an exact checker and a rendering as text.",
}


def write_pages(app: Sphinx) -> None:
    """Write the generated pages; a page that has not changed is left alone, so that it is not read again."""
    pages = {f"api/estimators/{name}.md": estimator_page(cls) for name, cls in estimators().items()}
    pages |= {f"api/packages/{it.__name__.split('.')[-1]}.md": package_page(it, text) for it, text in PACKAGES.items()}
    for name, text in (pages | {"gallery.md": gallery()}).items():
        page, text = HERE / name, f"{MARK}\n\n{text}"
        page.parent.mkdir(exist_ok=True)
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


def estimators() -> dict[str, type[gradients.Estimator]]:
    """Return the public estimators by name."""
    named = {name: getattr(gradients, name) for name in gradients.__all__}
    kinds = {name: it for name, it in named.items() if isinstance(it, type) and issubclass(it, gradients.Estimator)}
    return {name: it for name, it in kinds.items() if it is not gradients.Estimator}


def estimator_page(cls: type[gradients.Estimator]) -> str:
    """Return the page of an estimator: its claims, and its docstring."""
    memory = cls.memory.replace("sqrt T", r"\sqrt{T}")
    missing = " and ".join(cls.not_differentiated)
    facts = [f"{KINDS[cls.kind]}", f"saves ${memory}$ for backward"]
    facts += [f"no gradient for {missing}"] if missing else []
    return f"""# {cls.__name__}

{"; ".join(facts)}. [How to choose](../../choosing.md) compares it with the others.

```{{eval-rst}}
.. autoclass:: loopgrad.gradients.{cls.__name__}
```
"""


def package_page(package: ModuleType, text: str) -> str:
    """Return the page of a package: every public name that has no page elsewhere."""
    named = {name: getattr(package, name) for name in package.__all__}
    coupled = (models.Coupling, models.Coupled)
    shown = {n: it for n, it in named.items() if not (isinstance(it, type) and issubclass(it, coupled))}
    lines = []
    for name, it in shown.items():
        kind = "class" if isinstance(it, type) else "function" if callable(it) else "data"
        members = kind == "class" and not issubclass(it, tuple)  # the fields of a tuple are told in its docstring
        lines.append(f".. auto{kind}:: {package.__name__}.{name}" + "\n   :members:" * members)
    title = package.__name__.split(".")[-1].capitalize()
    return (
        f"# {title}\n\n{text}\n\n```{{eval-rst}}\n.. currentmodule:: {package.__name__}\n\n"
        + "\n".join(lines)
        + "\n```\n"
    )


def gallery() -> str:
    """Return the page of all figures below results, each group with the command of the record beside it."""
    parts = ["# Gallery", GALLERY, "## Pages with curves", linked()]
    groups: dict[tuple[Path, Path], list[Path]] = {}
    for figure in sorted(RESULTS.rglob("*.png")):
        groups.setdefault(origin_of(figure), []).append(figure)
    for (place, record), figures in groups.items():
        found = json.loads(record.read_text().splitlines()[0] if record.suffix == ".jsonl" else record.read_text())
        name = place.relative_to(RESULTS)
        shown = "\n\n".join(map(figure_directive, figures))
        parts += [
            f"## {': '.join(name.parts).replace('_', ' ').capitalize()}",
            f":::::{{container}} gallery\n{shown}\n:::::" if len(figures) > 2 else shown,
            f"```bash\n{found['command']}\n```",
            f"Commit {found['commit']}, {found['date']}; [record]({record.relative_to(HERE).as_posix()}).",
        ]
    return "\n\n".join(parts) + "\n"


def linked() -> str:
    """Return links to the pages with curves, a line for each kind of result."""
    lines: dict[str, list[str]] = {}
    for page in (page for folder in folders() for page in pages(folder)):
        kind, *name = page.relative_to(RESULTS).with_suffix("").parts
        told = " ".join(part for part in name if part not in ("report", "cpu")).replace("_", " ") or "report"
        lines.setdefault(kind, []).append(f"[{told}]({page.relative_to(HERE).as_posix()})")
    return "\n".join(f"- {kind.capitalize()}: {', '.join(links)}" for kind, links in lines.items())


def origin_of(figure: Path) -> tuple[Path, Path]:
    """Return what a figure is of, as a path that names it, and the record that says which command made it."""
    if figure.stem.endswith("-figure"):
        place = figure.with_name(figure.stem.removesuffix("-figure"))
        return place, place.with_suffix(".json")
    folder = figure.parent.parent if figure.parent.name == "figures" else figure.parent
    own = folder / "records.jsonl"
    return folder, own if own.exists() else folder / "0" / "records.jsonl"  # a sweep has those of its jobs


def figure_directive(figure: Path) -> str:
    """Return the directive that shows a figure, with what its name says of it."""
    path = figure.relative_to(HERE).as_posix()
    kind = max((kind for kind in DRAWN if figure.stem.endswith(kind)), key=len, default=None)
    run = figure.stem.removesuffix(kind or "").strip("-")
    words = " ".join(filter(None, [f"`{run}`:" if run and kind else "", DRAWN[kind] if kind else figure.stem]))
    return f"::::{{figure}} {path}\n:width: 100%\n:alt: {DRAWN.get(kind or '', figure.stem)}\n\n{words}\n::::"


def escape(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep |x|, a norm, from being read as a substitution, and a line that begins with an initial as a list."""
    for i, line in enumerate(lines):
        if not re.match(r"\s*(>>>|\.\.\.|\.\. math::)", line):
            lines[i] = re.sub(r"^(\s*(?:\w+: )?[A-Za-z])\. ", r"\1\. ", line.replace("|", r"\|"))


def add_citations(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """End the Reference section of a class with links to its entries in the bibliography."""
    keys = getattr(obj, "references", ()) if isinstance(obj, type) and "references" in vars(obj) else ()
    if keys and "Reference:" in lines:
        start = lines.index("Reference:") + 1
        end = next((i for i in range(start, len(lines)) if not lines[i].startswith("    ")), len(lines))
        lines[end:end] = ["", f"    Bibliography: :cite:p:`{','.join(keys)}`."]


def readable(app: Sphinx, what: str, name: str, obj: object, options: object, signature: str, returns: str):
    """Write the default of a field that is made anew so that the signature can be parsed."""
    if signature and "<factory>" in signature:
        return signature.replace("<factory>", "..."), returns
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages first, and see docstrings before napoleon does."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-signature", readable)
    app.connect("autodoc-process-docstring", escape, priority=400)
    app.connect("autodoc-process-docstring", add_citations, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
