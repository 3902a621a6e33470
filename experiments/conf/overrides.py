"""Overrides of the command line: a misspelt group, key or choice is refused with the nearest valid names.

Hydra refuses unknown keys too, but without names, and silently takes any key with a leading `+`.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigSource
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from loopgrad.experiments.conf.nearest import nearest
from loopgrad.experiments.conf.own_files import check_folder
from loopgrad.experiments.conf.targets import hints_of, parameters_of, target_of
from loopgrad.experiments.errors import ConfigError

CONF = "loopgrad.experiments.conf"
RENAMED = {"tensorboard": "logger=tensorboard, or logger=none"}


def composed(command: str, overrides: list[str], sweep: bool = False) -> DictConfig:
    """Compose the configuration of a command.

    Args:
        command: Name of the primary configuration.
        overrides: As typed.
        sweep: Whether an override may give several values; the first of each is composed.

    Raises:
        ConfigError: An override is malformed, or names a group, choice or key that does not exist, or takes away
            what the command needs.
        OSError: Hydra found no plugins.
    """
    _check_plugins()
    with _apart(), initialize_config_module(CONF, version_base="1.3"):
        try:
            typed = [_parsed(line) for line in overrides]
            parsed = [_single(o, sweep) for o in typed]
            loader = GlobalHydra.instance().config_loader()
            searched = [o for o in parsed if o.get_key_element() == "hydra.searchpath"]
            for place in searched:
                _check_search_path(place.value())
            places = [str(place.input_line) for place in searched]
            default, groups = _default(command) if not places else _composed_default(command, places)
            for override in typed:
                if (group := _group(override)) in groups:
                    options = _options(loader, group, places)
                    _check_choice(override, options, several=_takes_several(default.get(group)))
            chosen = [o for o in parsed if _group(o) in groups]
            base = compose(command, places + [str(o.input_line) for o in chosen]) if chosen else default
            for override in parsed:
                if _group(override) not in groups and re.split("[./]", override.key_or_group)[0] != "hydra":
                    _check_key(override, base, parsed, groups)
            config = compose(command, [str(o.input_line) for o in parsed])
            OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except ConfigError:
            raise
        except (HydraException, OmegaConfBaseException, RecursionError, ValueError, TypeError) as error:
            raise ConfigError(said(error)) from error  # Hydra's own, of what it did not foresee
        for key in default:
            if config.get(key) is None and default[key] is not None:
                known = _options(loader, str(key), places) if key in groups else []
                options = f"there is: {', '.join(known)}" if known else f"give {key}="
                raise ConfigError(f"{command} cannot do without {key}; {options}")
        return config


def _check_plugins() -> None:
    """Refuse what Hydra passes over in silence: where memory is short, its search for plugins finds none."""
    sources = Plugins.instance().discover(ConfigSource)
    if not {"pkg", "file", "structured"} <= {it.scheme() for it in sources if issubclass(it, ConfigSource)}:
        why = "Hydra could not load its own plugins: memory is short, or hydra-core is not installed whole"
        raise OSError(errno.EAGAIN, why)


@cache
def _default(command: str) -> tuple[DictConfig, frozenset[str]]:
    """Return what a command is by default, which is in the package's own files: only read it."""
    return _composed_default(command, [])


def _composed_default(command: str, places: list[str]) -> tuple[DictConfig, frozenset[str]]:
    """Return the configuration of a command without overrides, and the groups that one may choose from."""
    whole = compose(command, places, return_hydra_config=True)
    default = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    groups = GlobalHydra.instance().config_loader().list_groups("")
    return default, frozenset(it for it in groups if it in default or it in whole.hydra.runtime.choices)


@contextmanager
def _apart() -> Iterator[None]:
    """Compose apart from the configuration that a command runs with."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:  # in what stands there now: the block has put another in its place
        GlobalHydra.instance().hydra = before


def _options(loader: Any, group: str, places: list[str]) -> list[str]:
    """Return the choices of a group, those in its folders as folder/choice."""
    found = list(loader.get_group_options(group, overrides=places))
    for folder in loader.list_groups(group):
        found += [f"{folder}/{name}" for name in loader.get_group_options(f"{group}/{folder}", overrides=places)]
    return found


def _check_search_path(value: Any) -> None:
    for place in value if isinstance(value, list) else [value]:
        kind, _, folder = str(place).rpartition("://")
        if kind in ("", "file"):
            check_folder(Path(folder))


def said(error: BaseException) -> str:
    """Return on one line what Hydra or OmegaConf says, with the key that it speaks of and the reason behind it."""
    if isinstance(error, RecursionError):
        return "the configuration is nested too deeply, or refers to itself"
    told = [_first_line(error)]
    key = getattr(error, "full_key", None)
    if key and str(key) not in told[0]:
        told.insert(0, str(key))
    cause = error.__cause__
    if isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException):
        told.append(_first_line(cause))
    return ": ".join(dict.fromkeys(told))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _parsed(line: str) -> Override:
    try:
        return OverridesParser.create().parse_override(line)
    except RecursionError as error:
        raise ConfigError(f"{line[:80]}...: is nested too deeply to be read") from error
    except (HydraException, ValueError) as error:  # Python itself refuses an int of thousands of digits
        reason = " ".join(str(error).split())
        raise ConfigError(f"{line[:80]}: cannot be read as key=value: {reason[:400]}") from error


def _single(override: Override, sweep: bool) -> Override:
    """Return an override with one value: itself, or the first of a sweep."""
    if not override.is_sweep_override():
        return override
    line = str(override.input_line)
    if not sweep:
        key, value = line.split("=", 1)
        raise ConfigError(f"{line}: several values; write {key}=[{value}] for a list, or -m for one run after another")
    if not override.is_discrete_sweep():
        raise ConfigError(f"{line}: list the values of a sweep, separated by commas")
    first = next(iter(override.sweep_iterator(transformer=Transformer.encode)))
    return _parsed(f"{line.split('=', 1)[0]}={first}")


def _group(override: Override) -> str:
    return override.key_or_group.split("@")[0]


def _takes_several(node: Any) -> bool:
    """Whether the choices of a group stand side by side, each under its name, as estimators do."""
    return isinstance(node, DictConfig) and "_target_" not in node


def _check_choice(override: Override, options: list[str], several: bool) -> None:
    if override.is_delete():
        return
    group = _group(override)
    if override.is_add() or override.is_force_add():
        raise ConfigError(f"{override.input_line}: {group} is chosen without a +, by {group}=")
    values = list(override.sweep_iterator()) if override.is_discrete_sweep() else [override.value()]
    if not several and any(isinstance(value, list) for value in values):
        raise ConfigError(f"{override.input_line}: takes one {group}; with -m, {group}=A,B runs one after another")
    for choice in [item for value in values for item in (value if isinstance(value, list) else [value])]:
        choice = "null" if choice is None else choice
        if str(choice) not in options:
            raise ConfigError(f"{group}={choice}: there is no such {group}; {nearest(str(choice), options)}")


def _check_key(override: Override, base: DictConfig, overrides: list[Override], groups: frozenset[str]) -> None:
    key, line = override.key_or_group, str(override.input_line)
    known = keys_of(base)
    if key in known:
        return
    addable = _may_be_added(key, base, overrides)
    if addable and (override.is_add() or override.is_force_add()):
        return
    if addable and not override.is_delete():
        raise ConfigError(f"{line}: {key} is not set so far; to add it, write +{line}")
    if key in RENAMED:
        raise ConfigError(f"{line}: there is no key {key} any more: say {RENAMED[key]}")
    raise ConfigError(f"{line}: there is no key {key}; {nearest(key, [*known, *sorted(groups)])}")


def _may_be_added(key: str, base: DictConfig, overrides: list[Override]) -> bool:
    """Return whether a key is a parameter that has its default so far, or belongs to one more contestant or mapping."""
    given = {o.key_or_group: o for o in overrides}
    parent, _, name = key.rpartition(".")
    path = key.split(".")
    if path[0] == "estimator" in base and path[1:] and path[1] not in (base.estimator or {}):
        new = f"estimator.{path[1]}"
        return key == new or f"{new}._target_" in given or new in given
    node = OmegaConf.select(base, parent) if parent else None
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if f"{parent}._target_" in given:
        target = given[f"{parent}._target_"].value()
    if target is not None or not isinstance(node, DictConfig):
        return target is not None and name in parameters_of(str(target))
    return _is_in_mapping(path[:-1], base)


def _is_in_mapping(path: list[str], base: DictConfig) -> bool:
    """Return whether a place is a parameter that takes a mapping, or within it."""
    from loopgrad.experiments.conf.annotations import takes_mapping  # loads torch

    for depth in range(len(path) - 1, 0, -1):
        owner = OmegaConf.select(base, ".".join(path[:depth]))
        if isinstance(owner, DictConfig) and "_target_" in owner:
            return takes_mapping(hints_of(target_of(owner["_target_"])).get(path[depth]))
    return False


def keys_of(config: DictConfig, prefix: str = "") -> list[str]:
    """Return all dotted keys of a configuration, nodes and leaves."""
    keys = []
    for key in config:
        keys.append(f"{prefix}{key}")
        node = None if OmegaConf.is_missing(config, key) else config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none():
            keys += keys_of(node, f"{prefix}{key}.")
    return keys
