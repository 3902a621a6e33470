"""Compiled code whose backward pass can be run more than once."""

import sys
from contextlib import ExitStack
from typing import Any


class BuffersKept:
    """A block in which torch.compile makes code whose graphs serve several products.

    By itself its backward pass reuses the memory of what forward has saved, and refuses to be run twice. Code that was
    compiled before, under another estimator, stays as it is: `Linearised` then runs the cycle again for each product.
    """

    def __enter__(self) -> "BuffersKept":
        """Begin the block."""
        self._stack = ExitStack()
        config = getattr(sys.modules.get("torch._functorch"), "config", None)  # not imported: nothing is compiled
        if hasattr(config, "donated_buffer"):
            self._stack.enter_context(config.patch(donated_buffer=False))  # pyright: ignore[reportOptionalMemberAccess]
        return self

    def __exit__(self, *exception: Any) -> None:
        """End the block."""
        self._stack.close()
