"""Tell whether an error means that the machine or the device had too little memory."""

from typing import Final

import torch

from sft_atlas.errors import Error, OutOfMemoryError

_MESSAGES: Final = (
    "can't allocate memory",  # the CPU's allocator, which has no error type of its own
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN and their like, which allocate beside torch
)


def is_out_of_memory(end: object) -> bool:
    """Return True for any of the ways in which torch says so; an `Error` has its name already."""
    if isinstance(end, (MemoryError, torch.OutOfMemoryError)):
        return True
    is_torch = isinstance(end, RuntimeError) and not isinstance(end, Error)
    return is_torch and any(message in str(end) for message in _MESSAGES)


def out_of_memory(error: Exception, *, where: str) -> OutOfMemoryError:
    """Return an error that names what `is_out_of_memory` recognised."""
    named = OutOfMemoryError(
        f"{where}: memory ran out ({error}). Use a device with more memory, LoRA, or a smaller "
        f"max_tokens."
    )
    named.__cause__ = error
    return named
