"""Killing a process at its k-th call that changes something below a folder: every instant can be reached, each once."""

import atexit
import os
import signal
import sys
from pathlib import Path
from typing import Any

_CALLS = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def install(folder: str, at: int | None, heard: str, *, exchange: bool) -> None:
    """Hear the calls of this process from now on, and end it before call `at`; at its own end write down which came.

    Args:
        folder: Calls on other paths do not count.
        at: Which call is not made any more; None to let all be made.
        heard: File for the calls, a line each.
        exchange: Whether the system can exchange two names at once.
    """
    from decision_traces.folders import exchange as exchanging

    calls: list[str] = []
    swap = exchanging._swap() if exchange else None

    def hear(event: str, path: str) -> None:
        if path.startswith(folder):
            if len(calls) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            calls.append(f"{event} {path.removeprefix(folder)}")

    def audited(event: str, args: tuple[Any, ...]) -> None:
        if event in _CALLS or (event == "open" and isinstance(args[2], int) and args[2] & _WRITING):
            hear(event, os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else "")

    def swapped(one: bytes, other: bytes) -> int:
        hear("exchange", os.fsdecode(one))  # a call of the C library, which Python does not hear
        assert swap is not None
        return swap(one, other)

    exchanging._swap = lambda: swapped if swap else None
    sys.addaudithook(audited)
    atexit.register(lambda: Path(heard).write_text("\n".join(calls)))
