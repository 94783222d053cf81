"""Ctrl-C, a polite kill, a terminal that goes away: the first stops a command in good order, the second at once."""

import atexit
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

STOPPED: Final = "Stopped; nothing was left half-done."
_STOPPING: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_AT_ONCE: Final = b"Stopped at once; what was finished before is kept.\n"
_SHOW_CURSOR: Final = b"\x1b[?25h"
_STDERR: Final = 2


class Stop:
    """What stopped a command, if anything did."""

    def __init__(self) -> None:
        self._signal = signal.SIGINT
        self.received = False

    @property
    def exit_code(self) -> int:
        """What shells expect of a command that was stopped so: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self._signal

    def handle(self, number: int, _frame: Any) -> None:
        """Interrupt what is being done; the second time end the process, whatever it is doing.

        Raises:
            KeyboardInterrupt: The first time.
        """
        if self.received:
            with suppress(OSError):  # the terminal may be what went away
                os.write(_STDERR, (_SHOW_CURSOR if os.isatty(_STDERR) else b"") + _AT_ONCE)
            os._exit(self.exit_code)
        self._signal, self.received = signal.Signals(number), True
        raise KeyboardInterrupt


@contextmanager
def stopping() -> Iterator[Stop]:
    """Let the signals that ask a command to stop raise KeyboardInterrupt; those that are ignored stay ignored.

    A command that was stopped ends soon, and keeps this until it has: a second Ctrl-C while the interpreter clears up
    must not print a traceback.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield stop
        return
    before = {number: signal.getsignal(number) for number in _STOPPING}
    taken = [n for n, handler in before.items() if handler in {signal.SIG_DFL, signal.default_int_handler}]
    for number in taken:
        signal.signal(number, stop.handle)
    try:
        yield stop
    finally:
        if stop.received:
            atexit.register(_ignore, taken)
        else:
            for number in taken:
                signal.signal(number, before[number])


def _ignore(numbers: Iterable[int]) -> None:
    """Let signals pass: the interpreter is about to take its handlers away, and they would end it with another code."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
