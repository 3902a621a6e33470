"""loopgrad cite: the BibTeX of this toolkit and of the papers behind a configuration.

    loopgrad cite estimator=one_step model=hrm

The classes in use name the papers, and references.bib holds their entries.
"""

import re
from collections.abc import Iterator
from importlib.resources import files

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import loopgrad
from loopgrad.experiments.conf.targets import target_of
from loopgrad.experiments.conf.values import Names
from loopgrad.models.reversible_cells import COUPLINGS

TOOLKIT = """@software{{loopgrad,
  title = {{{{loopgrad: memory-efficient alternatives to backprop-through-time for recursive networks}}}},
  author = {{{{The loopgrad developers}}}},
  version = {{{version}}},
  year = {{2026}},
}}"""


def main(config: DictConfig, names: Names, console: Console) -> None:
    """Print BibTeX entries."""
    used = [target_of(target) for target in targets(config)]
    if coupling := OmegaConf.select(config, "model.coupling"):
        used.append(COUPLINGS[coupling])
    keys = {key for it in used for key in getattr(it, "references", ())}
    known = entries()
    print("\n\n".join([TOOLKIT.format(version=loopgrad.__version__), *(known[key] for key in sorted(keys))]))


def targets(config: DictConfig) -> Iterator[str]:
    """Yield every `_target_` of a configuration."""
    for key in config:
        node = config._get_node(key)
        if key == "_target_":
            yield config[key]
        elif isinstance(node, DictConfig) and not node._is_none():
            yield from targets(node)


def entries() -> dict[str, str]:
    """Return the entries of references.bib by key, as they are written there."""
    text = files("loopgrad").joinpath("references.bib").read_text(encoding="utf-8")
    return {entry[1]: entry[0] for entry in re.finditer(r"^@\w+\{(\S+),$.*?^\}$", text, re.MULTILINE | re.DOTALL)}
