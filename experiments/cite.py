"""loopgrad cite: the BibTeX of this toolkit and of the papers behind a configuration.

    loopgrad cite estimator=one_step model=hrm

References are read from the docstrings of the classes in use, so that there is no second list to keep.
"""

import inspect
import re
from collections.abc import Iterator

from hydra.utils import get_object
from omegaconf import DictConfig
from rich.console import Console

import loopgrad
from loopgrad.experiments.plans import Names

# Authors, "Title", [venue,] year[, arXiv id]
ENTRY = re.compile(
    r'(?P<authors>[^";]+?),\s+"(?P<title>[^"]+?),?",?\s+(?:(?P<venue>[^";]*?),\s+)?(?P<year>(?:19|20)\d\d)\b'
    r"(?:,\s+(?:arXiv\s+)?(?P<arxiv>\d{4}\.\d{4,5}))?"
)


SHORT = re.compile(
    r"(?P<authors>[^\";]+?),\s+(?P<year>(?:19|20)\d\d),\s+arXiv\s+(?P<arxiv>\d{4}\.\d{4,5})"
)  # a docstring that leaves the title to another one's


def main(config: DictConfig, names: Names, console: Console) -> None:
    """Print BibTeX entries."""
    entries: dict[str, str] = {}
    for target in targets(config):
        entries = references(inspect.getdoc(get_object(target)) or "") | entries  # a title stays
    entries = {"loopgrad": _software()} | dict(sorted(entries.items()))
    print("\n\n".join(entries.values()))


def targets(config: DictConfig) -> Iterator[str]:
    """Yield every `_target_` of a configuration."""
    for key in config:
        node = config._get_node(key)
        if key == "_target_":
            yield config[key]
        elif isinstance(node, DictConfig) and not node._is_none():
            yield from targets(node)


def references(docstring: str) -> dict[str, str]:
    """Return key -> BibTeX entry for each work that a docstring's Reference paragraph gives with its title."""
    paragraphs = re.findall(r"References?:(.*?)(?:\n\s*\n|\n\w[^\n]*:\n|\Z)", docstring, re.DOTALL)
    found = {}
    for part in ";".join(paragraphs).split(";"):
        match = ENTRY.search(" ".join(part.split()))
        if match:
            key, entry = _entry(match)
            found[key] = entry
    return found


def _entry(match: re.Match[str]) -> tuple[str, str]:
    authors = match["authors"].removesuffix(" et al.").strip()
    names = re.split(r",\s+| and ", authors)
    others = " and others" if "et al." in match["authors"] else ""
    surname = re.sub(r"\W", "", names[0].split()[-1]).lower()
    word = next(w for w in re.findall(r"\w+", match["title"].lower()) if len(w) > 3)
    fields = {"author": " and ".join(names) + others, "title": f"{{{match['title']}}}", "year": match["year"]}
    if match["arxiv"]:
        fields |= {"eprint": match["arxiv"], "archivePrefix": "arXiv"}
    elif match["venue"]:
        fields["howpublished"] = match["venue"]
    key = f"{surname}{match['year']}{word}"
    return key, _bibtex("misc", key, fields)


def _software() -> str:
    fields = {"author": "{The loopgrad developers}", "version": loopgrad.__version__, "year": "2026"}
    title = "{loopgrad: memory-efficient alternatives to backprop-through-time for recursive networks}"
    return _bibtex("software", "loopgrad", {"title": title, **fields})


def _bibtex(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
