"""Memory that helper processes see too: what lies in it is told them in a few numbers instead of being sent."""

import mmap
import os
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

Pin = Callable[[int, int], None]
"""Address and size in bytes → nothing; tells a device about memory, or to forget it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array lies in shared memory.

    Attributes:
        room: Number of the room.
        offset: First byte in it.
        shape, strides, dtype: What NumPy calls so; strides in bytes.
    """

    room: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    def array(self, memory: mmap.mmap) -> np.ndarray:
        """Return the array, given the memory of its room."""
        return np.ndarray(self.shape, self.dtype, memory, self.offset, self.strides)


@dataclass(slots=True)
class Room:
    """One stretch of shared memory; Linux keeps it as long as somebody has it open or mapped."""

    file: int
    size: int
    address: int
    memory: mmap.mmap


@dataclass(slots=True)
class SharedMemory:
    """Rooms of shared memory, which are given back together.

    Attributes:
        pin, unpin: Called with every room when it is made and before it is given back.
    """

    pin: Pin | None = None
    unpin: Pin | None = None
    rooms: list[Room] = field(default_factory=list)
    _by_address: list[tuple[int, int]] = field(default_factory=list)

    @staticmethod
    def available() -> bool:
        """Return whether this system has it (Linux)."""
        return hasattr(os, "memfd_create")

    def room(self, size: int) -> np.ndarray:
        """Return so many bytes, which are zero: (size,) uint8."""
        file = os.memfd_create("decision-traces")
        os.ftruncate(file, size)
        memory = mmap.mmap(file, size)
        array = np.frombuffer(memory, np.uint8)
        room = Room(file, size, array.ctypes.data, memory)
        if self.pin is not None:
            self.pin(room.address, size)
        self._by_address.append((room.address, len(self.rooms)))
        self._by_address.sort()
        self.rooms.append(room)
        return array

    def place(self, view: np.ndarray) -> Place:
        """Return where a view of a room lies.

        Raises:
            ValueError: It lies elsewhere.
        """
        address: int = view.__array_interface__["data"][0]
        at = bisect_right(self._by_address, (address, len(self.rooms))) - 1
        if at >= 0:
            number = self._by_address[at][1]
            room = self.rooms[number]
            if address + view.nbytes <= room.address + room.size:
                return Place(number, address - room.address, view.shape, view.strides, view.dtype.str)
        raise ValueError("the array does not lie in shared memory")

    def close(self) -> None:
        """Give everything back; memory that an array still refers to stays until that is gone."""
        for room in self.rooms:
            if self.unpin is not None:
                self.unpin(room.address, room.size)
            os.close(room.file)
        self.rooms.clear()
        self._by_address.clear()
