"""What a `_target_` names: a class or function, and the parameters that it takes."""

import importlib
import inspect
import pkgutil
from typing import Any, get_type_hints

from loopgrad.experiments.conf.nearest import nearest
from loopgrad.experiments.errors import ConfigError

BY_NAME = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY


def parameters_of(target: str) -> dict[str, Any]:
    """Return the parameters that the constructor or function `target`, a dotted path, takes by name.

    Raises:
        ConfigError: There is no such class or function, or Python does not know its parameters.
    """
    return taken_by(target_of(target), target)


def taken_by(found: Any, target: str) -> dict[str, Any]:
    """Return the parameters that a class or function takes by name.

    Raises:
        ConfigError: Python does not know them, as of some that are written in C.
    """
    try:
        parameters = inspect.signature(found).parameters
    except (ValueError, TypeError) as error:
        raise ConfigError(f"_target_={target}: its parameters are not known: {error}") from error
    return {name: it for name, it in parameters.items() if it.kind in BY_NAME}


def target_of(target: str) -> Any:
    """Return the class or function at a dotted path.

    Raises:
        ConfigError: There is none.
    """
    module, _, name = str(target).rpartition(".")
    try:
        found = pkgutil.resolve_name(str(target))
    except (ImportError, AttributeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        try:
            names = [n for n in dir(importlib.import_module(module)) if not n.startswith("_")]
        except (ImportError, ValueError):
            raise ConfigError(f"_target_={target}: {reason}") from error
        raise ConfigError(f"_target_={target}: {module} has no {name}; {nearest(name, names)}") from error
    if not callable(found):
        raise ConfigError(f"_target_={target}: give a class or a function, this is a {type(found).__name__}")
    return found


def hints_of(found: Any) -> dict[str, Any]:
    """Return the annotations of what a target takes; nothing where they name what is not there, as a user's own may."""
    try:
        return get_type_hints(found.__init__ if isinstance(found, type) else found)
    except (NameError, TypeError, AttributeError):
        return {}
