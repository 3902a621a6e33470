"""dtypes by name, as a configuration gives them."""

from typing import Literal

import torch

ForwardDtype = torch.dtype | Literal["bfloat16", "float16", "float32"] | None


def dtype_of(dtype: ForwardDtype) -> torch.dtype | None:
    """Return a dtype, given itself or by its name; None for None.

    Raises:
        ValueError: There is no such floating dtype.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"forward_dtype={dtype!r} must be 'bfloat16', 'float16', 'float32' or None")
    return found
