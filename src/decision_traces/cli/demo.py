"""`decision-traces demo`: the first minute. No network, no flags needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from decision_traces.analysis.options import AttributionOptions, LensOptions
from decision_traces.api.compute import compute
from decision_traces.cli._app import command_line, make_console, run_command
from decision_traces.cli._progress import make_progress
from decision_traces.cli._report import report
from decision_traces.errors import DamagedRunError
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.format.analyses import LENS_PICTURE
from decision_traces.model.load import DEMO_MODEL
from decision_traces.store import TraceStore, failures, validate_run
from decision_traces.viz.tables import decision_table, kind_table


@dataclass(frozen=True)
class DemoConfig:
    """Trace the embedded model over 200 examples of its own small world, check the run, and look at it."""

    limit: int = 200
    """How many validation examples."""
    out_dir: Path | None = None
    """The run's folder; default traces/<RUN_ID>."""
    overwrite: bool = False
    """Replace a run that is already there."""
    quiet: bool = False
    """No progress."""


def run(config: DemoConfig) -> int:
    """Extract, validate, look."""
    console, progress = make_console(), make_progress(make_console(stderr=True), quiet=config.quiet)
    folder = extract_next_token(
        NextTokenConfig(
            model=DEMO_MODEL,
            dataset="tinyworld",
            limit=config.limit,
            capture=("attn", "qkv", "hidden", "resid"),
            batch_size=32,
            out_dir=config.out_dir,
            overwrite=config.overwrite,
            command=("decision-traces", "demo"),
        ),
        progress,
    )
    report(folder, console)
    _validate(folder, console)
    _look(folder, console)
    _next_steps(folder, console)
    return 0


def _validate(folder: Path, console: Console) -> None:
    results = validate_run(folder)
    failed = failures(results)
    if failed:
        raise DamagedRunError(f"{folder} failed its checks: {', '.join(r.name for r in failed)}.")
    console.print(f"Validated: all {len(results)} checks hold (every array, table and file).")


def _look(folder: Path, console: Console) -> None:
    """Show when decisions stand; leave in the run what the page reads of `lens` and `attribution --all_positions`."""
    store = TraceStore(folder)
    lens = compute(store, "lens", LensOptions(all_positions=True), command="demo").result
    compute(store, "attribution", AttributionOptions(all_positions=True), command="demo")
    console.print()
    console.print(decision_table(lens.lenses[0], lens.depth))
    console.print(kind_table(lens.depth, store.tokens.set_index("example_id")["kind"]))
    console.print()
    console.print(f"Picture: {store.results.result('lens') / LENS_PICTURE}", soft_wrap=True)


def _next_steps(folder: Path, console: Console) -> None:
    python = (
        f"from decision_traces import TraceStore; st = TraceStore({str(folder)!r}); print(st.arrays()); "
        "print(st.attn(0, layer=2, head=1, trim=True).round(2))"
    )
    for line in (
        "",
        "Next:",
        f"  {command_line('decision-traces', 'view', folder)}",
        f"  {command_line('decision-traces', 'index', folder, '--validate')}",
        f"  {command_line('python', '-c', python)}",
        "  decision-traces nexttok --model gpt2 --dataset wikitext2 --limit 100 --max_seq_len 256",
    ):
        console.print(line, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_command(DemoConfig, run, argv, prog="decision-traces demo")
