"""Memory: keeping it while it is used again and again, giving it back, and telling when there was not enough of it."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import nn

_WORDS: Final = ("out of memory", "can't allocate memory", "not enough memory")
_WORTH_IT: Final = 64 << 20
_TRIM_THRESHOLD: Final = -1  # of glibc's malloc.h
_MMAP_THRESHOLD: Final = -3


def out_of_memory(error: BaseException) -> bool:
    """Return whether the memory, or that of the accelerator, did not hold what was asked for."""
    by_type = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return by_type or (isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS))


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let what is freed stay with the process for a while, where its C library is glibc.

    A forward pass frees its large tensors and asks for the same sizes in the next layer. glibc hands each to the
    system and takes new pages, which the system clears: with attention written out, a tenth of a run's time; of a lens,
    which makes logits over and over, a fifth.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:  # what glibc itself goes up to, once large pieces have been freed
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_TRIM_THRESHOLD, 64 << 20)


def give_back(model: nn.Module) -> None:
    """Give freed memory back to the system, where its C library (glibc) would keep it for later.

    Loading, probing and the certificate of a large model leave some hundred MiB behind that the run itself has no use
    for. Of a small one there is nothing to be had, and looking for garbage takes longer than the run.
    """
    if sum(p.nbytes for p in model.parameters()) < _WORTH_IT:
        return
    gc.collect()
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library of this process if it is glibc, the only one that has these."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
