"""Run a command and kill it before its k-th file-system call below a folder: `python -m killed K FOLDER MODULE …`."""

import os
import runpy
import signal
import sys
from typing import Any

_CALLS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def kill_at(k: int, folder: str) -> None:
    """Let the process end at the k-th call that names something in the folder, as if the machine had lost it."""
    left = k

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if event in _CALLS and isinstance(args[0], str | os.PathLike) and os.fspath(args[0]).startswith(folder):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    number, folder, *sys.argv = sys.argv[1:]
    kill_at(int(number), folder)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
