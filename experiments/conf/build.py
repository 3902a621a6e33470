"""Building objects from configuration nodes, after checking every key and value against what the target takes."""

import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from loopgrad.experiments.conf.bounds import check_bounds
from loopgrad.experiments.conf.nearest import nearest
from loopgrad.experiments.conf.targets import parameters_of, target_of
from loopgrad.experiments.errors import ConfigError
from loopgrad.gradients.checks import is_int, is_number


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
        if isinstance(cause, InstantiationException):  # Hydra itself refuses what the user's node names
            raise ConfigError(f"{name}: {str(cause).splitlines()[0]}") from error
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
    known, found = parameters_of(target), target_of(target)
    hints = get_type_hints(found.__init__ if isinstance(found, type) else found)
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
            continue
        value = OmegaConf.to_object(node[key]) if OmegaConf.is_config(node[key]) else node[key]
        if key in hints:
            check_value(f"{name}.{key}", value, hints[key])
        if str(target).startswith("loopgrad."):  # others know best what they can hold
            check_bounds(f"{name}.{key}", value)


def check_value(name: str, value: Any, annotation: Any) -> None:
    """Check a value against a type annotation.

    Raises:
        ConfigError: The value is of another type, or none of the choices.
    """
    options = _options(annotation)
    if any(matches(value, option) for option in options):
        return
    choices = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    if choices and isinstance(value, str):
        raise ConfigError(f"{name}={value}: no such choice; {nearest(value, map(str, choices))}")
    kinds = [option for option in options if get_origin(option) is not Literal]
    names = ["null" if kind is type(None) else getattr(kind, "__name__", str(kind)) for kind in kinds]
    wanted = " or ".join([*map(repr, choices), *names])
    raise ConfigError(f"{name}={value}: must be {wanted}, got {type(value).__name__}")


def matches(value: Any, annotation: Any) -> bool:
    """Return whether a plain value (number, string, bool, None, list) fits a type annotation that is no union."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if annotation is float:
        return is_number(value)
    if annotation is int:
        return is_int(value)
    if origin in (tuple, list):
        items = [option for a in arguments if a is not ... for option in _options(a)]
        return isinstance(value, list | tuple) and all(any(matches(v, a) for a in items) for v in value)
    if getattr(annotation, "_is_protocol", False):  # which no plain value can be
        return False
    return annotation is Any or not isinstance(annotation, type) or isinstance(value, annotation)


def _options(annotation: Any) -> list[Any]:
    """Return what a union takes one of; anything else is its only option."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for argument in get_args(annotation) for option in _options(argument)]
    return [annotation]
