"""Overrides of the command line: a misspelt group, key or choice is refused with the nearest valid names.

Hydra refuses unknown keys too, but without names, and takes any key with a leading `+` without a word.
"""

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF = "loopgrad.experiments.conf"


class ConfigError(ValueError):
    """What the user asked for cannot be composed; the message says what is wrong and what is near."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a sentence with the names nearest to `name`, or all of them if none is near."""
    names = sorted(set(names))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if not near:  # a dotted key may be right but for its place
        near = [known for known in names if known.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]][:3]
    return f"did you mean {' or '.join(near)}?" if near else f"there is: {', '.join(names)}"


def composed(command: str, overrides: list[str]) -> DictConfig:
    """Compose the configuration of a command.

    Raises:
        ConfigError: An override is malformed, or names a group, choice or key that does not exist.
    """
    with initialize_config_module(CONF, version_base="1.3"):
        try:
            parsed = OverridesParser.create().parse_overrides(overrides)
        except HydraException as error:
            raise ConfigError(f"cannot read the overrides: {error}") from error
        loader = GlobalHydra.instance().config_loader()
        choices = {group: loader.get_group_options(group) for group in loader.list_groups("") if group != "hydra"}
        groups = [o for o in parsed if _group(o) in choices]
        for override in groups:
            _check_choice(override, choices[_group(override)])
        try:
            base = compose(command, [str(o.input_line) for o in groups])
            for override in parsed:
                if _group(override) not in choices and not override.key_or_group.startswith("hydra"):
                    _check_key(override, base, choices)
            return compose(command, overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_first_sentence(error)) from error


def _group(override: Override) -> str:
    return override.key_or_group.split("@")[0]


def _check_choice(override: Override, options: list[str]) -> None:
    if override.is_delete():
        return
    value = override.value()
    wanted = list(override.sweep_iterator()) if override.is_sweep_override() else value
    for choice in wanted if isinstance(wanted, list) else [wanted]:
        if choice is not None and str(choice) not in options:
            group = _group(override)
            raise ConfigError(f"{group}={choice}: there is no such {group}; {nearest(str(choice), options)}")


def _check_key(override: Override, base: DictConfig, choices: dict[str, list[str]]) -> None:
    key = override.key_or_group
    known = keys_of(base)
    if key in known:
        return
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(base, parent) if parent else base
    if override.is_add() and isinstance(node, DictConfig):
        if "_target_" in node and name in parameters_of(node["_target_"]):
            return
        if parent == "estimator":  # one more contestant, which is checked when it is built
            return
    near = [*known, *choices] if not override.is_add() or not isinstance(node, DictConfig) else known
    raise ConfigError(f"{override.input_line}: there is no key {key}; {nearest(key, near)}")


def keys_of(config: DictConfig, prefix: str = "") -> list[str]:
    """Return all dotted keys of a configuration, nodes and leaves."""
    keys = []
    for key in config:
        keys.append(f"{prefix}{key}")
        node = None if OmegaConf.is_missing(config, key) else config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none():
            keys += keys_of(node, f"{prefix}{key}.")
    return keys


def parameters_of(target: str) -> dict[str, Any]:
    """Return the parameters that the constructor or function `target`, a dotted path, takes by name."""
    return dict(inspect.signature(get_object(target)).parameters)


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
