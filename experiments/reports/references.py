"""The papers behind a configuration: what the classes that it names refer to, as BibTeX."""

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from typing import Any

import loopgrad
from loopgrad import gradients, models
from loopgrad.models.reversible_cells import COUPLINGS

TOOLKIT = """@software{{loopgrad,
  title = {{{{loopgrad: memory-efficient alternatives to backprop-through-time for recursive networks}}}},
  author = {{{{The loopgrad developers}}}},
  version = {{{version}}},
  year = {{2026}},
}}"""
PACKAGES = {"loopgrad.gradients": gradients, "loopgrad.models": models}


def entries() -> dict[str, str]:
    """Return the entries of references.bib by key, as they are written there."""
    text = files("loopgrad").joinpath("references.bib").read_text(encoding="utf-8")
    return {entry[1]: entry[0] for entry in re.finditer(r"^@\w+\{(\S+),$.*?^\}$", text, re.MULTILINE | re.DOTALL)}


def bibtex(keys: Iterable[str]) -> str:
    """Return the entry of this toolkit and those of some keys, sorted; a key that has no entry is left out."""
    known = entries()
    found = [known[key] for key in sorted(set(keys)) if key in known]
    return "\n\n".join([TOOLKIT.format(version=loopgrad.__version__), *found])


def of_configuration(config: Any) -> set[str]:
    """Return the keys of the papers behind the estimators and models that the configuration in a record names.

    Names are looked up among the public names of `loopgrad.gradients` and `loopgrad.models`; nothing is imported.
    """
    keys: set[str] = set()
    for target in _targets(config):
        package, _, name = target.rpartition(".")
        if package in PACKAGES and name in PACKAGES[package].__all__:
            keys.update(getattr(getattr(PACKAGES[package], name), "references", ()))
    model = config.get("model") if isinstance(config, Mapping) else None
    coupling = model.get("coupling") if isinstance(model, Mapping) else None
    if isinstance(coupling, str) and coupling in COUPLINGS:
        keys.update(COUPLINGS[coupling].references)
    return keys


def _targets(config: Any) -> Iterator[str]:
    left = [config]
    while left:
        node = left.pop()
        if isinstance(node, Mapping):
            if isinstance(target := node.get("_target_"), str):
                yield target
            left += [it for it in node.values() if isinstance(it, Mapping | list)]
        elif isinstance(node, list):
            left += [it for it in node if isinstance(it, Mapping | list)]
