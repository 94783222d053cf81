"""What the commands of all analyses share: `decision-traces NAME RUN` with the options of `analysis.options`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Generic, NoReturn, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from decision_traces.analysis.registry import ANALYSES
from decision_traces.api.compute import compute
from decision_traces.cli._app import make_console, run_command
from decision_traces.cli._counting import counting
from decision_traces.store import TraceStore, doubts
from decision_traces.viz.analyses import shown

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True, slots=True)
class AnalysisCommand(Generic[OptionsT]):
    """An analysis of a run.

    Attributes:
        run: The run folder.
        options: Those of the analysis.
        out: Keep the results in this folder instead of the run; a run that can only be read needs it.
        quiet: Print nothing; the files are written.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    options: Annotated[OptionsT, tyro.conf.arg(name="")]
    out: Path | None = None
    quiet: bool = False


def run_analysis(name: str, argv: Sequence[str] | None) -> NoReturn:
    """Run the command of an analysis.

    Args:
        name: One of `ANALYSES`.
        argv: Its flags; those of the process by default.
    """
    options = ANALYSES[name].options
    about = (getdoc(options) or "").split("\nAttributes:")[0]
    run_command(
        AnalysisCommand[options],  # type: ignore[valid-type]
        partial(_run, name),
        argv,
        prog=f"decision-traces {name}",
        description=about,
    )


def _run(name: str, args: AnalysisCommand[object]) -> int:
    """Compute, print tables and sentences, and say what lies in the run now."""
    console, store = make_console(), TraceStore(args.run, results=args.out)
    console.quiet = args.quiet
    counted = partial(counting, make_console(stderr=True), quiet=args.quiet)
    found = compute(store, name, args.options, counted)
    for part in shown(found.result, args.options):
        _print(console, part)
    if name == "compare" and (said := doubts(store.about)):
        console.print(said, style="red", soft_wrap=True)
    for said in (*(f"Written: {path}" for path in found.files), *found.notes):
        console.print(said, soft_wrap=True)
    return 0


def _print(console: Console, part: Table | str) -> None:
    console.print(part, soft_wrap=isinstance(part, str))
