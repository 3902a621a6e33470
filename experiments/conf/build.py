"""Building objects from configuration nodes, after checking every key and value against what the target takes.

A node that the user gave names any class or function, which Hydra calls. A node out of a file names a class of a
table, and its values are what they are: nothing is imported, interpolated or called but these classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from loopgrad.experiments.conf.annotations import (
    DEEPEST,
    OF_HYDRA,
    check_class,
    check_mapping,
    check_value,
    shown,
    takes_mapping,
)
from loopgrad.experiments.conf.bounds import check_bounds
from loopgrad.experiments.conf.nearest import nearest
from loopgrad.experiments.conf.own import Classes
from loopgrad.experiments.conf.targets import hints_of, taken_by, target_of
from loopgrad.experiments.endings import lacks_memory
from loopgrad.experiments.errors import ConfigError

Node = DictConfig | Mapping[str, Any]


def build(node: Node, name: str, classes: Classes | None = None, **extra: Any) -> Any:
    """Make the object that `node` describes by its `_target_`.

    Args:
        node: A node with `_target_` and values for the target's parameters.
        name: Where the node stands, for messages, such as "task".
        classes: What a node out of a file may name; None for a node of the user's own, which may name anything.
        extra: Arguments that are not configuration: sizes that follow from the task, the seed.

    Raises:
        ConfigError: A key is not a parameter of the target, a value is of the wrong type or not a valid choice, or the
            target itself refuses its arguments.
    """
    check(node, name, set(extra), classes)
    try:
        if classes is not None:
            return _made(node, classes, extra)
        return instantiate(OmegaConf.create(dict(node)) if isinstance(node, dict) else node, **extra, _convert_="all")
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # Hydra wraps what a target raises once per level of nesting
            cause = cause.__cause__
        if lacks_memory(cause):
            raise MemoryError(str(cause)) from error
        if isinstance(cause, InstantiationException):  # Hydra itself refuses what the user's node names
            reason = " ".join(str(cause).split()).split(". ")[0]
            raise ConfigError(f"{name}: {reason}") from error
        if isinstance(cause, ValueError | TypeError | OSError | ImportError):
            raise ConfigError(f"{name}: {cause}") from error
        if isinstance(cause, ArithmeticError | RuntimeError):  # sizes that no one foresaw
            reason = str(cause).split("\n")[0]
            target = shown(node["_target_"])
            raise ConfigError(f"{name}: {target} cannot be made of these values: {reason}") from error
        raise


def _made(node: Node, classes: Classes, extra: Mapping[str, Any]) -> Any:
    """Call the class of a table, nodes in nodes first; all has been checked."""
    values = {str(key): value for key, value in node.items() if key != "_target_"}
    nodes = {key for key, value in values.items() if isinstance(value, dict) and "_target_" in value}
    made = {key: _made(value, classes, {}) if key in nodes else value for key, value in values.items()}
    return classes[node["_target_"]](**made, **extra)


def check(node: Node, name: str, given: set[str] = frozenset(), classes: Classes | None = None) -> None:  # pyright: ignore[reportArgumentType]
    """Check the keys and values of a node and of the nodes in it against the signatures of their targets.

    Raises:
        ConfigError: As `build`.
    """
    try:
        plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        raise ConfigError(f"{name}: {str(error).splitlines()[0]}") from error
    find = target_of if classes is None else _finder(classes, name)
    _check(plain, name, given, find, DEEPEST)


def _finder(classes: Classes, name: str) -> Callable[[Any], type]:
    def find(target: Any) -> type:
        if isinstance(target, str) and target in classes:
            return classes[target]
        raise ConfigError(
            f"{name} is of {shown(target)}, and no class but loopgrad's own is taken from a file, for it could run "
            "anything"
        )

    return find


def _check(node: Any, name: str, given: set[str], find: Callable[[Any], Any], depth: int) -> Any:
    """Check a node; return what its target is."""
    if not isinstance(node, dict):
        raise ConfigError(f"{name} must be a node with a _target_, got {type(node).__name__}")
    if "_target_" not in node:
        raise ConfigError(f"{name} has no _target_: give the class that it configures")
    if not depth:
        raise ConfigError(f"{name}: nodes in one another, more than {DEEPEST} deep")
    target = node["_target_"]
    found = find(target)
    known, hints = taken_by(found, target), hints_of(found)
    for key, value in node.items():
        place = f"{name}.{shown(key)}"
        if key == "_target_":
            continue
        if key in OF_HYDRA:
            raise ConfigError(f"{place}: of Hydra's own keys _target_ alone is read: give parameters by their names")
        if key not in known:
            raise ConfigError(f"{place}: {target} takes no {shown(key)}; {nearest(shown(key), known)}")
        if key in given:
            raise ConfigError(f"{place} is not free: it follows from the rest of the configuration")
        if isinstance(value, dict) and "_target_" not in value and takes_mapping(hints.get(key)):
            check_mapping(place, value, hints[key])
            if str(target).startswith("loopgrad."):
                check_bounds(place, list(value.values()))
            continue
        if isinstance(value, dict):
            inner = _check(value, place, set(), find, depth - 1)
            if key in hints:
                check_class(place, inner, value["_target_"], hints[key])
            continue
        if key in hints:
            check_value(place, value, hints[key])
        if str(target).startswith("loopgrad."):  # others know best what they can hold
            check_bounds(place, value)
    return found
