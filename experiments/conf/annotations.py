"""Plain values, and classes of nodes, against the annotations of the parameters that take them."""

import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from loopgrad.experiments.conf.nearest import nearest
from loopgrad.experiments.errors import ConfigError
from loopgrad.gradients.checks import is_int, is_number

MOST_SHOWN = 120
DEEPEST = 16
"""Nodes in one another; those of this package are two deep."""
OF_HYDRA = ("_target_", "_args_", "_convert_", "_partial_", "_recursive_")


def shown(value: Any, most: int = MOST_SHOWN) -> str:
    """Return a value for a message of one line, cut where it is long: a file may hold anything."""
    try:
        text = str(value)
    except ValueError:  # Python writes no number of thousands of digits
        return f"a {type(value).__name__} too long to show"
    text = text if len(text) <= most else f"{text[:most]}..."
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


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
        raise ConfigError(f"{name}={shown(value)}: no such choice; {nearest(shown(value), map(str, choices))}")
    kinds = [option for option in options if get_origin(option) is not Literal]
    names = ["null" if kind is type(None) else _named(kind) for kind in kinds]
    wanted = " or ".join([*map(repr, choices), *names])
    raise ConfigError(f"{name}={shown(value)}: must be {wanted}, got {type(value).__name__}")


def _named(kind: Any) -> str:
    """Return the name of a type, with what it holds where that is said, such as list[int]."""
    return str(kind) if get_args(kind) else getattr(kind, "__name__", str(kind))


def takes_mapping(annotation: Any) -> bool:
    """Return whether a parameter is said to take a mapping, so that a node without a class may be one."""
    return any(_is_mapping(option) for option in _options(annotation))


def check_mapping(name: str, value: dict[Any, Any], annotation: Any) -> None:
    """Check a mapping of plain values, in which no class is named, against a type annotation.

    Raises:
        ConfigError: A key or value is of another type, or something in it would be taken for a class.
    """
    _check_inert(name, value)
    arguments = [get_args(option) for option in _options(annotation) if _is_mapping(option)]
    if any(_fits(value, kinds) for kinds in arguments):
        return
    keys, values = arguments[0]
    for key, item in value.items():
        check_value(f"{name}: the key {shown(key)}", key, keys)
        check_value(f"{name}.{shown(key)}", item, values)


def _check_inert(name: str, value: Any, depth: int = DEEPEST) -> None:
    """Raise ConfigError where Hydra would find more than plain values."""
    if not depth:
        raise ConfigError(f"{name}: values in one another, more than {DEEPEST} deep")
    if isinstance(value, dict) and (special := [key for key in value if key in OF_HYDRA]):
        raise ConfigError(f"{name}.{special[0]}: a mapping holds plain values, and this is a key of Hydra's own")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        _check_inert(name, item, depth - 1)


def check_class(name: str, found: Any, target: str, annotation: Any) -> None:
    """Check the class that a node names against the annotation of the parameter that takes the object.

    Raises:
        ConfigError: The annotation asks for objects of another class.
    """
    wanted = [option for option in _options(annotation) if option is not type(None)]
    if not isinstance(found, type) or not all(isinstance(option, type) for option in wanted):
        return  # what a function returns, and what is no class, is not known before
    if not issubclass(found, tuple(wanted)):
        names = " or ".join(option.__name__ for option in wanted)
        raise ConfigError(f"{name}: must be {names}, and {shown(target)} is not")


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
    if _is_mapping(annotation):
        return isinstance(value, dict) and _fits(value, arguments)
    if getattr(annotation, "_is_protocol", False):  # which no plain value can be
        return False
    return annotation is Any or not isinstance(annotation, type) or isinstance(value, annotation)


def _is_mapping(annotation: Any) -> bool:
    kind = get_origin(annotation) or annotation
    return isinstance(kind, type) and issubclass(kind, Mapping) and issubclass(dict, kind)


def _fits(value: dict[Any, Any], kinds: tuple[Any, ...]) -> bool:
    """Return whether keys and values of a mapping are of the kinds that its annotation gives, if it gives any."""
    if not kinds:
        return True
    pairs = [(item, kind) for both in value.items() for item, kind in zip(both, kinds, strict=True)]
    return all(any(matches(item, option) for option in _options(kind)) for item, kind in pairs)


def _options(annotation: Any) -> list[Any]:
    """Return what a union takes one of; anything else is its only option."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for argument in get_args(annotation) for option in _options(argument)]
    return [annotation]
