"""A cell of the user's own, named on the command line as module:attribute, and the shapes that it reads."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from loopgrad.experiments.conf.nearest import nearest
from loopgrad.experiments.errors import ConfigError

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def the_cell(named: Any) -> Any:
    """Return what module:attribute names: a module, or a class or function that makes one; the folder is searched too.

    Raises:
        ConfigError: There is no such module or attribute, or it is none of these.
    """
    module, colon, attribute = str(named).partition(":")
    if not (module and colon and attribute):
        raise ConfigError(f"cell={named}: give module:attribute, such as cell=mypackage.cells:Cell")
    with _here():
        try:
            found = importlib.import_module(module)
        except MemoryError:
            raise
        except Exception as error:  # whatever the user's own code raises
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"cell={named}: {module} cannot be imported: {reason}; it must be installed, on PYTHONPATH or in "
                f"{os.getcwd()}"
            ) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = [it for it in dir(found) if not it.startswith("_")]
            raise ConfigError(f"cell={named}: {module} has no {attribute}; {nearest(name, public)}")
        found = getattr(found, name)
    if not (isinstance(found, nn.Module) or callable(found)):
        raise ConfigError(
            f"cell={named}: is of type {type(found).__name__}: name a torch.nn.Module, or a class or function that "
            "makes one"
        )
    return found


def shapes_of(name: str, value: Any, wanted: bool) -> Any:
    """Return a tree of tensors without a batch and without data: sizes, and a dtype last if it is not float32.

    Floating ones require grad if gradients of them are wanted.

    Raises:
        ConfigError: It is none.
    """
    if value is None:
        return None
    if isinstance(value, dict) and value:
        return {key: shapes_of(f"{name}.{key}", part, wanted) for key, part in value.items()}
    if not isinstance(value, list):
        raise ConfigError(
            f"{name}={value}: must be the sizes of one sample without the batch, such as {name}=[81,512], a mapping or "
            "list of such, with a dtype last where it is not float32"
        )
    if value and all(isinstance(part, list | dict) for part in value):
        return tuple(shapes_of(f"{name}.{number}", part, wanted) for number, part in enumerate(value))
    *sizes, last = value or [None]
    dtype = last if isinstance(last, str) else "float32"
    sizes = sizes if isinstance(last, str) or not value else [*sizes, last]
    if dtype not in DTYPES:
        raise ConfigError(f"{name}={value}: there is no dtype {dtype}; {nearest(dtype, DTYPES)}")
    if any(isinstance(size, bool) or not isinstance(size, int) or not 0 < size < 2**40 for size in sizes):
        raise ConfigError(f"{name}={value}: sizes must be ints of at least 1, and a dtype may come last")
    made = torch.empty(sizes, dtype=getattr(torch, dtype), device="meta")
    return made.requires_grad_(wanted and made.is_floating_point())


@contextmanager
def _here() -> Iterator[None]:
    """Search modules in the folder that the command is typed in, too."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
