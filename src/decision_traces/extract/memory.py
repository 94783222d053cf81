"""Memory: giving back what is no longer used, and telling when there was not enough of it."""

import ctypes
import gc
import sys
from typing import Final

import torch

_WORDS: Final = ("out of memory", "can't allocate memory", "not enough memory")


def out_of_memory(error: BaseException) -> bool:
    """Return whether the memory, or that of the accelerator, did not hold what was asked for."""
    told = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return told or (isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS))


def give_back() -> None:
    """Give freed memory back to the system, where its C library (glibc) would keep it for later.

    Loading, probing and the certificate leave some hundred MiB behind that the run itself has no use for.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
