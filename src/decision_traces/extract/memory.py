"""Whether an error means that there was not enough memory: each library says it in its own way."""

from typing import Final

import torch

_WORDS: Final = ("out of memory", "can't allocate memory", "not enough memory")


def out_of_memory(error: BaseException) -> bool:
    """Return whether the memory, or that of the accelerator, did not hold what was asked for."""
    told = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return told or (isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS))
