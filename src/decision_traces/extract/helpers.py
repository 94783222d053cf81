"""What helps the engine to keep up with an accelerator: page-locked shared memory, and processes that write from it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from decision_traces.store import MOST_PROCESSES, ShardProcess, SharedMemory
from decision_traces.tracing.buffers import Memory

_SUCCESS: Final = 0


@dataclass(frozen=True, slots=True)
class Helpers:
    """Nothing beside a processor that computes, which needs its cores itself.

    Attributes:
        processes: Write shard files.
        pinned: Whether copies come from a CUDA device.
        shared: What the processes read; None where there are none.
    """

    processes: Sequence[ShardProcess] = ()
    pinned: bool = False
    shared: SharedMemory | None = None

    @classmethod
    def of(cls, device: torch.device) -> "Helpers":
        """Return what helps with a model on this device."""
        if device.type != "cuda":
            return cls()
        if not SharedMemory.available():
            return cls(pinned=True)
        shared = SharedMemory(_pin, _unpin)
        return cls([ShardProcess(shared) for _ in range(n_processes())], pinned=True, shared=shared)

    @property
    def memory(self) -> Memory | None:
        """What gives room for captures; None for torch itself."""
        return None if self.shared is None else self.shared.room

    def close(self) -> None:
        """Let the processes end, and give the memory back."""
        for process in self.processes:
            process.dismiss()
        for process in self.processes:
            process.close()
        if self.shared is not None:
            if self.pinned:
                torch.cuda.synchronize()  # nothing may still be copied to it
            self.shared.close()


def n_processes() -> int:
    """Return how many processes write: half the cores, and no more than are of use."""
    return max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) // 2))


def _pin(address: int, size: int) -> None:
    """Lock memory, so that a device copies to it by itself.

    Raises:
        MemoryError: The system does not let so much be locked.
    """
    code = int(_runtime().cudaHostRegister(address, size, 0))
    if code != _SUCCESS:
        raise MemoryError(f"not enough memory: {size / 1e6:,.0f} MB could not be page-locked (CUDA error {code})")


def _unpin(address: int, _size: int) -> None:
    _runtime().cudaHostUnregister(address)


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
