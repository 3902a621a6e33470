"""loopgrad cite: the BibTeX of this toolkit and of the papers behind a configuration.

    loopgrad cite estimator=one_step model=hrm

The classes in use name the papers, and references.bib holds their entries.
"""

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from loopgrad.experiments.conf.targets import target_of
from loopgrad.experiments.conf.values import Names
from loopgrad.experiments.reports.references import bibtex
from loopgrad.models.reversible_cells import COUPLINGS


def main(config: DictConfig, names: Names, console: Console) -> None:
    """Print BibTeX entries."""
    used = [target_of(target) for target in targets(config)]
    if coupling := OmegaConf.select(config, "model.coupling"):
        used.append(COUPLINGS[coupling])
    print(bibtex(key for it in used for key in getattr(it, "references", ())))


def targets(config: DictConfig) -> Iterator[str]:
    """Yield every `_target_` of a configuration."""
    for key in config:
        node = config._get_node(key)
        if key == "_target_":
            yield config[key]
        elif isinstance(node, DictConfig) and not node._is_none():
            yield from targets(node)
