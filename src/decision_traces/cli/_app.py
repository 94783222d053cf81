"""What every command shares: parsing, one-line errors, exit codes, paths as users type them."""

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro
from rich.console import Console

from decision_traces.errors import Interrupted, TraceError
from decision_traces.store.runs import portable_path

CommandT = TypeVar("CommandT")
_WIDTH_WITHOUT_TERMINAL = 120
INTERRUPTED_EXIT = 130


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that is readable in a file or a pipe as well: no colours, a fixed width."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=_WIDTH_WITHOUT_TERMINAL)


def _with_paths(command: Any) -> Any:
    """Return a dataclass with all its paths made ones of this system."""
    if not is_dataclass(command) or isinstance(command, type):
        return command
    paths = {f.name: portable_path(v) for f in fields(command) if isinstance(v := getattr(command, f.name), Path)}
    return replace(command, **paths)


def run_command(
    command_cls: Callable[..., CommandT],
    handler: Callable[[CommandT], int | None],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
) -> NoReturn:
    """Parse flags, do the work, and exit.

    Args:
        command_cls: The command's dataclass; its fields are the flags, with underscores.
        handler: Does the work and returns the exit code (None is 0).
        argv: Flags; `sys.argv[1:]` by default.
        prog: The command's name in its help.

    Raises:
        SystemExit: 0 done; 1 a `TraceError`, printed as one sentence; 2 flags that cannot be read; 130 Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console of another encoding must not end the command
    console = make_console(stderr=True)
    command = tyro.cli(command_cls, args=argv, prog=prog, use_underscores=True, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        code = handler(_with_paths(command))
    except Interrupted as stop:
        console.print(str(stop), markup=False, soft_wrap=True)
        sys.exit(INTERRUPTED_EXIT)
    except KeyboardInterrupt:
        console.print("Stopped; nothing was left half-done.", soft_wrap=True)
        sys.exit(INTERRUPTED_EXIT)
    except TraceError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    sys.exit(code or 0)
