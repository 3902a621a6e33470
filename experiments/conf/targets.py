"""What a `_target_` names: a class or function, and the parameters that it takes."""

import importlib
import inspect
import pkgutil
from typing import Any

from loopgrad.experiments.conf.nearest import nearest
from loopgrad.experiments.errors import ConfigError


def parameters_of(target: str) -> dict[str, Any]:
    """Return the parameters that the constructor or function `target`, a dotted path, takes by name.

    Raises:
        ConfigError: There is no such class or function.
    """
    return dict(inspect.signature(target_of(target)).parameters)


def target_of(target: str) -> Any:
    """Return the class or function at a dotted path.

    Raises:
        ConfigError: There is none.
    """
    module, _, name = str(target).rpartition(".")
    try:
        found = pkgutil.resolve_name(str(target))
    except (ImportError, AttributeError, ValueError) as error:
        try:
            names = [n for n in dir(importlib.import_module(module)) if not n.startswith("_")]
        except (ImportError, ValueError):
            raise ConfigError(f"_target_={target}: {str(error).strip().splitlines()[0]}") from error
        raise ConfigError(f"_target_={target}: {module} has no {name}; {nearest(name, names)}") from error
    if not callable(found):
        raise ConfigError(f"_target_={target}: give a class or a function, this is a {type(found).__name__}")
    return found
