"""Building objects from configuration nodes, after checking every key and value against what the target takes."""

import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from loopgrad.experiments.conf.nearest import nearest
from loopgrad.experiments.conf.targets import parameters_of, target_of
from loopgrad.experiments.errors import ConfigError


def build(node: DictConfig, name: str, **extra: Any) -> Any:
    """Instantiate `node` by its `_target_`.

    Args:
        node: A node with `_target_` and values for the target's parameters.
        name: Where the node stands, for messages, such as "task".
        extra: Arguments that are not configuration: sizes that follow from the task, the seed.

    Raises:
        ConfigError: A key is not a parameter of the target, a value is of the wrong type or not a valid choice, or the
            target itself refuses its arguments.
    """
    check(node, name, set(extra))
    try:
        return instantiate(node, **extra, _convert_="all")
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # Hydra wraps what a target raises once per level of nesting
            cause = cause.__cause__
        if isinstance(cause, ValueError | TypeError | OSError | ImportError):
            raise ConfigError(f"{name}: {cause}") from error
        if isinstance(cause, ArithmeticError | RuntimeError):  # sizes that no one foresaw
            reason = str(cause).split("\n")[0]
            raise ConfigError(f"{name}: {node['_target_']} cannot be made of these values: {reason}") from error
        raise


def check(node: DictConfig, name: str, given: set[str] = frozenset()) -> None:  # pyright: ignore[reportArgumentType]
    """Check the keys and values of a node and of the nodes in it against the signatures of their targets.

    Raises:
        ConfigError: As `build`.
    """
    if "_target_" not in node:
        raise ConfigError(f"{name} has no _target_: give the class that it configures")
    target = node["_target_"]
    known = parameters_of(target)
    hints = _hints(target)
    for key in node:
        if key == "_target_":
            continue
        if key not in known:
            raise ConfigError(f"{name}.{key}: {target} takes no {key}; {nearest(str(key), known)}")
        if key in given:
            raise ConfigError(f"{name}.{key} is not free: it follows from the rest of the configuration")
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            check(child, f"{name}.{key}")
        elif key in hints:
            value = OmegaConf.to_object(node[key]) if OmegaConf.is_config(node[key]) else node[key]
            check_value(f"{name}.{key}", value, hints[key])


def check_value(name: str, value: Any, annotation: Any) -> None:
    """Check a value against a type annotation.

    Raises:
        ConfigError: The value is of another type, or none of the choices.
    """
    if matches(value, annotation):
        return
    choices = [str(choice) for choice in _choices(annotation)]
    if choices and isinstance(value, str):
        raise ConfigError(f"{name}={value}: no such choice; {nearest(value, choices)}")
    wanted = " or ".join(_names(annotation))
    raise ConfigError(f"{name}={value}: must be {wanted}, got {type(value).__name__}")


def matches(value: Any, annotation: Any) -> bool:
    """Return whether a plain value (number, string, bool, None, list) fits a type annotation."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(matches(value, option) for option in arguments)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (str, bool):
        return isinstance(value, annotation)
    if origin in (tuple, list):
        items = [a for a in arguments if a is not ...]
        return isinstance(value, list | tuple) and all(any(matches(v, a) for a in items) for v in value)
    return not isinstance(annotation, type) or isinstance(value, annotation)


def _hints(target: str) -> dict[str, Any]:
    found = target_of(target)
    return get_type_hints(found.__init__ if isinstance(found, type) else found)


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for option in get_args(annotation) for choice in _choices(option)]


def _names(annotation: Any) -> list[str]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [name for option in get_args(annotation) for name in _names(option)]
    if get_origin(annotation) is Literal:
        return [repr(choice) for choice in get_args(annotation)]
    if annotation in (None, type(None)):
        return ["null"]
    return [getattr(annotation, "__name__", str(annotation))]
