"""Single values of a configuration: their checks, all of them as plain values, and what its choices are called."""

from dataclasses import dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from loopgrad.experiments.conf.bounds import check_bounds
from loopgrad.experiments.errors import ConfigError


@dataclass(frozen=True)
class Names:
    """Names of the chosen task and model, and the overrides that chose them as typed, for records."""

    task: str
    model: str
    overrides: tuple[str, ...] | None = None  # None: not known

    @classmethod
    def chosen(cls) -> "Names":
        """Return those of the command that Hydra runs."""
        runtime = HydraConfig.get()
        task, model = (str(runtime.runtime.choices.get(group)) for group in ("task", "model"))
        return cls(task, model, tuple(runtime.overrides.task))


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as nested dicts, lists and values."""
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def check_count(name: str, value: Any, least: int = 1, optional: bool = False) -> None:
    """Check a number of things.

    Raises:
        ConfigError: It is not an int of at least `least` (or null, where it is optional), or beyond all bounds.
    """
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value}: must be an int of at least {least}{' or null' if optional else ''}")
    check_bounds(name, value)


def run_seeds(seeds: Any, name: str = "seeds") -> list[int]:
    """Return the seeds of runs.

    Args:
        seeds: A list, or a single seed.
        name: Key of the configuration, for messages.

    Raises:
        ConfigError: It is not a list of different ints of at least 0.
    """
    values = list(seeds) if OmegaConf.is_list(seeds) else [seeds]
    if not values or any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in values):
        example = "an int of at least 0" if name == "seed" else "a list of ints of at least 0, such as seeds=[0,1,2]"
        raise ConfigError(f"{name}={seeds}: must be {example}")
    check_bounds(name, values)
    if len(set(values)) < len(values):
        raise ConfigError(f"{name}={seeds}: a seed is named twice")
    return values
