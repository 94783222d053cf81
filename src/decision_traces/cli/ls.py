"""`decision-traces ls`: the runs in a folder, newest first."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

import tyro
from rich.console import Console
from rich.table import Table

from decision_traces.cli._app import make_console, run_command
from decision_traces.errors import RunError
from decision_traces.store import default_root, list_runs


@dataclass(frozen=True, slots=True)
class LsCommand:
    """List the runs in a folder, newest first.

    Attributes:
        dir: The folder; traces/ of the clone, or ./traces, where left out.
    """

    dir: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = None


def run(args: LsCommand, console: Console) -> int:
    """Print the runs of a folder and return the exit code.

    Raises:
        RunError: The folder was named and is not there.
    """
    root = default_root() if args.dir is None else args.dir
    if args.dir is not None and not root.is_dir():
        raise RunError(f"No folder {root}. Runs are written to {default_root()} unless --out_dir says otherwise.")
    runs = list_runs(root)
    if not runs:
        console.print(f"No runs in {root}. `decision-traces demo` makes one in a minute.", soft_wrap=True)
        return 0
    table = Table(title=str(root), title_justify="left")
    for heading in ("run", "state", "made", "model", "data", "examples", "captured"):
        table.add_column(heading, justify="right" if heading == "examples" else "left", overflow="fold")
    for r in runs:
        made = datetime.fromtimestamp(r.modified).astimezone().strftime("%Y-%m-%d %H:%M")
        count = "" if r.n_examples is None else str(r.n_examples)
        state = f"{r.state}: {r.why}" if r.why else r.state
        table.add_row(r.run_id, state, made, r.model, r.dataset, count, " ".join(r.capture))
    console.print(table)
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_command(LsCommand, lambda args: run(args, make_console()), argv, prog="decision-traces ls")
