"""loopgrad cite: the BibTeX of this toolkit and of the papers behind a configuration.

    loopgrad cite estimator=one_step model=hrm

References are read from the docstrings of the classes in use, so that there is no second list to keep.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import loopgrad
import loopgrad.gradients as gradients
import loopgrad.models as models
from loopgrad.experiments.conf.choices import Names
from loopgrad.experiments.conf.targets import target_of
from loopgrad.models.coupling import COUPLINGS

# Authors, "Title", [venue,] year[, arXiv id]; where the arXiv id is given, the title may be missing
ENTRY = re.compile(
    r'(?P<authors>[^";]+?),\s+(?:"(?P<title>[^"]+?),?",?\s+(?:(?P<venue>[^";]*?),\s+)?)?(?P<year>(?:19|20)\d\d)\b'
    r"(?:,\s+(?:arXiv\s+)?(?P<arxiv>\d{4}\.\d{4,5}))?"
)


@dataclass(frozen=True)
class Work:
    """A paper: authors, title (None where a docstring does not repeat it), year, and where it is."""

    authors: str
    title: str | None
    year: str
    venue: str | None
    arxiv: str | None

    @property
    def identity(self) -> str:
        """What makes two mentions the same work."""
        return self.arxiv or f"{self.authors} {self.year} {(self.title or '').lower()}"

    def bibtex(self) -> str:
        """Return the BibTeX entry."""
        names = re.split(r",\s+| and ", self.authors.removesuffix(" et al.").strip())
        others = " and others" if self.authors.endswith(" et al.") else ""
        surname = re.sub(r"\W", "", names[0].split()[-1]).lower()
        title = self.title or f"arXiv {self.arxiv}"
        word = next((w for w in re.findall(r"\w+", title.lower()) if len(w) > 3), "")
        fields = {"author": " and ".join(names) + others, "title": f"{{{title}}}", "year": self.year}
        if self.arxiv:
            fields |= {"eprint": self.arxiv, "archivePrefix": "arXiv"}
        elif self.venue:
            fields["howpublished"] = self.venue
        return _bibtex("misc", f"{surname}{self.year}{word}", fields)


def main(config: DictConfig, names: Names, console: Console) -> None:
    """Print BibTeX entries."""
    classes = [target_of(target) for target in targets(config)]
    if coupling := OmegaConf.select(config, "model.coupling"):
        classes.append(COUPLINGS[coupling])
    used = [work for it in classes for work in references(inspect.getdoc(it) or "")]
    works = {work.identity: work for work in used}
    public = [getattr(package, name) for package in (gradients, models) for name in package.__all__]
    for work in used + [work for it in public for work in references(inspect.getdoc(it) or "")]:
        if work.identity in works and len(work.title or "") > len(works[work.identity].title or ""):
            works[work.identity] = work
    print("\n\n".join([_software(), *sorted(work.bibtex() for work in works.values())]))


def targets(config: DictConfig) -> Iterator[str]:
    """Yield every `_target_` of a configuration."""
    for key in config:
        node = config._get_node(key)
        if key == "_target_":
            yield config[key]
        elif isinstance(node, DictConfig) and not node._is_none():
            yield from targets(node)


def references(docstring: str) -> list[Work]:
    """Return the works that a docstring's Reference paragraph gives with their titles or arXiv ids."""
    paragraphs = re.findall(r"References?:(.*?)(?:\n\s*\n|\n\w[^\n]*:\n|\Z)", docstring, re.DOTALL)
    matches = [ENTRY.search(" ".join(part.split())) for part in ";".join(paragraphs).split(";")]
    return [Work(**match.groupdict()) for match in matches if match and (match["title"] or match["arxiv"])]


def _software() -> str:
    fields = {"author": "{The loopgrad developers}", "version": loopgrad.__version__, "year": "2026"}
    title = "{loopgrad: memory-efficient alternatives to backprop-through-time for recursive networks}"
    return _bibtex("software", "loopgrad", {"title": title, **fields})


def _bibtex(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
