"""`decision-traces index`: what a run holds; with --validate, every number of it checked."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NoReturn

import tyro
from rich.console import Console
from rich.table import Table

from decision_traces.checks import CheckResult
from decision_traces.cli._app import make_console, run_command
from decision_traces.cli._counting import counting
from decision_traces.errors import RandomHeadWarning, UncertifiedWarning, UsageError
from decision_traces.store import RunIndex, TraceStore, index_run


@dataclass(frozen=True, slots=True)
class IndexCommand:
    """Write index.json for a run folder; with --validate, check it from end to end.

    Attributes:
        run: The run folder.
        validate: Check every file, array and prediction; exit with 1 when one fails.
        deep: With validate, also load the model, compare its weights, and run sampled rows alone again.
        rows: How many rows deep samples.
        model_path: Where the model lies now, if not where it lay then; for deep.
        device: Where deep runs it: auto, cpu, cuda.
        trust_remote_code: Run Python that the model brings along; only for models of people you trust.
        results: Check the results of analyses in this folder (their --out), where they are not in the run.
        quiet: Print failures only.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    validate: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    deep: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    rows: int = 8
    model_path: Path | None = None
    device: str = "auto"
    trust_remote_code: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    results: Path | None = None
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def run(args: IndexCommand, console: Console) -> int:
    """Index the run, print what it holds and how the checks went, and return the exit code."""
    if args.deep and not args.validate:
        raise UsageError("--deep goes with --validate.")
    with warnings.catch_warnings():
        for kind in (UncertifiedWarning, RandomHeadWarning):  # they are said with the verdict
            warnings.simplefilter("ignore", kind)
        index = _index(args, console)
    if not args.quiet:
        console.print(_contents(index))
        if args.validate:
            console.print(_checks(index.checks))
    return _verdict(index, console)


def _index(args: IndexCommand, console: Console) -> RunIndex:
    with counting(console, "checking", quiet=args.quiet or not args.validate) as progress:
        index = index_run(args.run, validate=args.validate, results=args.results, progress=progress)
    return _deeper(args, index) if args.deep and index.valid else index


def _deeper(args: IndexCommand, index: RunIndex) -> RunIndex:
    """Add the checks that need the model; those of the disk alone hold already."""
    from decision_traces.analysis.replay import replay_rows  # loads torch

    store = TraceStore(args.run)
    trust = args.trust_remote_code
    found = replay_rows(store, args.rows, model_path=args.model_path, device=args.device, trust_remote_code=trust)
    return replace(index, checks=(*index.checks, *found))


def _contents(index: RunIndex) -> Table:
    table = Table(
        title=f"{index.run_id}: {index.model}, {index.dataset}, {index.n_examples} examples",
        title_justify="left",
    )
    for heading in ("array", "dims", "shape", "dtype", "files", "MB on disk", "MB of values"):
        table.add_column(heading, justify="right" if heading in {"files", "MB on disk", "MB of values"} else "left")
    for a in index.arrays:
        sizes = (f"{a.bytes_on_disk / 1e6:.2f}", f"{a.nominal_bytes / 1e6:.2f}")
        table.add_row(a.name, " ".join(a.dims), "×".join(map(str, a.shape)), a.dtype, str(a.files), *sizes)
    return table


def _checks(checks: Sequence[CheckResult]) -> Table:
    """Return one row per check that holds, with its worst figure over all arrays, and one per failure."""
    table = Table(title="Checks", title_justify="left")
    table.add_column("")
    table.add_column("check", min_width=20, overflow="fold")
    table.add_column("of", justify="right")
    table.add_column("worst", justify="right")
    table.add_column("where", overflow="fold")
    table.add_column("what", overflow="fold")
    for name in dict.fromkeys(check.name for check in checks):
        same = [check for check in checks if check.name == name]
        held, failed = [c for c in same if c.ok], [c for c in same if not c.ok]
        if held:
            worst = max(held, key=lambda c: -1.0 if c.worst is None else c.worst)
            where = worst.where if worst.worst else ""
            table.add_row("ok", name, str(len(held)), _figure(worst.worst), where, worst.detail)
        for c in failed:
            table.add_row("FAIL", name, "1", _figure(c.worst), _where(c), c.detail, style="red")
    return table


def _where(check: CheckResult) -> str:
    return check.where if check.array in check.where else f"{check.array}: {check.where}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _verdict(index: RunIndex, console: Console) -> int:
    if index.not_written:
        console.print(f"{index.path} could not be written: {index.not_written}.", soft_wrap=True)
    if index.uncertified:
        console.print(index.uncertified, style="red", soft_wrap=True)
    unwritten = 1 if index.not_written and not index.read_only else 0
    if index.valid is None:
        if not index.not_written:
            console.print(f"Indexed: {index.path}. Add --validate to check it.", soft_wrap=True)
        return unwritten
    failed = [check for check in index.checks if not check.ok]
    for c in failed:
        console.print(f"FAIL {c.name}: {_where(c)}: {c.detail}", style="red", soft_wrap=True)
    size = f"{index.bytes_on_disk / 1e6:.2f} MB on disk"
    if failed:
        console.print(f"{len(failed)} of {len(index.checks)} checks FAILED", style="red")
        return 1
    console.print(f"All {len(index.checks)} checks hold: {index.n_examples} examples, {size}.")
    return unwritten


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_command(IndexCommand, lambda args: run(args, make_console()), argv, prog="decision-traces index")
