"""Tell whether an error means that the machine or the device had too little memory."""

import torch

from sft_atlas.errors import Error


def is_out_of_memory(error: Exception) -> bool:
    """Return True for any of the ways in which torch says so; an `Error` has its name already."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU's allocator has no error type of its own.
    is_torch = isinstance(error, RuntimeError) and not isinstance(error, Error)
    return is_torch and "can't allocate memory" in str(error)
