"""What every command shares: parsing, one-line errors, exit codes, paths as users type them."""

import io
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro
from rich.console import Console

from decision_traces.cli._console import DataConsole
from decision_traces.cli._signals import STOPPED, stopping
from decision_traces.errors import Interrupted, TraceError
from decision_traces.paths import portable_fields
from decision_traces.printable import printable

CommandT = TypeVar("CommandT")
_WIDTH_WITHOUT_TERMINAL = 120


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that is readable in a file or a pipe as well: no colours, a fixed width."""
    console = DataConsole(stderr=stderr)
    return console if console.is_terminal else DataConsole(stderr=stderr, width=_WIDTH_WITHOUT_TERMINAL)


def command_line(*words: str | Path) -> str:
    """Return a command as it is typed into a shell: a name in it stays a name, whatever it is made of."""
    return shlex.join(map(str, words))


def _with_paths(command: Any) -> Any:
    """Return a dataclass with all its paths made ones of this system."""
    if not is_dataclass(command) or isinstance(command, type):
        return command
    inner = {f.name: _with_paths(getattr(command, f.name)) for f in fields(command)}
    return replace(command, **inner | portable_fields(command))


def run_command(
    command_cls: Callable[..., CommandT],
    handler: Callable[[CommandT], int | None],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> NoReturn:
    """Parse flags, do the work, and exit.

    Args:
        command_cls: The command's dataclass; its fields are the flags, with underscores.
        handler: Does the work and returns the exit code (None is 0).
        argv: Flags; `sys.argv[1:]` by default.
        prog: The command's name in its help.
        description: What its help says first; the dataclass's docstring by default.

    Raises:
        SystemExit: 0 done; 1 a `TraceError`, printed as one sentence; 2 flags that cannot be read; 130 Ctrl-C, and
            128 more than its number after another signal that asks a command to stop.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console of another encoding must not end the command
    console = make_console(stderr=True)
    with stopping() as stop:
        try:
            command = _parsed(command_cls, sys.argv[1:] if argv is None else argv, prog, description)
            code = handler(_with_paths(command))
        except (Interrupted, KeyboardInterrupt) as stopped:
            _last_words(console, str(stopped) or STOPPED)
            sys.exit(stop.exit_code)
        except TraceError as error:
            console.print(f"error: {error}", style="red", soft_wrap=True)
            sys.exit(1)
    sys.exit(code or 0)


def _parsed(
    command_cls: Callable[..., CommandT], argv: Sequence[str], prog: str | None, description: str | None
) -> CommandT:
    """Return the command that the flags make; tyro repeats flags that it cannot read, and is told them as shown."""
    said, options = io.StringIO(), (tyro.conf.FlagCreatePairsOff,)
    try:
        with redirect_stderr(said):
            return tyro.cli(
                command_cls, args=argv, prog=prog, description=description, use_underscores=True, config=options
            )
    except SystemExit as stopped:
        shown = [printable(flag) for flag in argv]
        if stopped.code and shown != list(argv):
            _parsed(command_cls, shown, prog, description)
        sys.stderr.write(said.getvalue())
        raise


def _last_words(console: Console, words: str) -> None:
    with suppress(OSError):  # the terminal may be what went away
        console.print(words, soft_wrap=True)
