"""`decision-traces nexttok`: workflow A."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from decision_traces.cli._app import make_console, run_command
from decision_traces.cli._progress import make_progress
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.store.folder import read_meta


def run(config: NextTokenConfig) -> int:
    """Extract, and say what came out and what to do next."""
    progress = make_progress(make_console(stderr=True), quiet=config.quiet)
    folder = extract_next_token(config, progress)
    if not config.quiet:
        console = make_console()
        report(folder, console)
        console.print(f"Check it: decision-traces index {folder} --validate", markup=False, soft_wrap=True)
    return 0


def report(folder: Path, console: Console) -> None:
    """Print what a finished run holds, in a few lines."""
    meta = read_meta(folder)
    timings = meta["timings"]
    console.print(f"Run: {folder}", markup=False, soft_wrap=True)
    console.print(
        f"{meta['n_examples']} examples, T = {meta['max_seq_len']}, {len(meta['arrays'])} arrays, "
        f"{meta['bytes'] / 1e6:,.1f} MB; {timings['extract_s']:.1f} s ({timings['tokens_per_s']:,.0f} tokens/s); "
        f"certificate {'passed' if meta['certificate']['passed'] else 'empty: no token to check on'}"
    )
    if meta.get("n_predictions"):
        console.print(
            f"Next token: {meta['next_accuracy']:.1%} right, mean NLL {meta['mean_next_nll']:.3f} nats, "
            f"mean entropy {meta['mean_next_entropy']:.3f} nats, over {meta['n_predictions']} predictions"
        )
    if meta["n_truncated"]:
        console.print(f"{meta['n_truncated']} texts were longer than T = {meta['max_seq_len']} tokens and were cut.")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    flags = sys.argv[1:] if argv is None else argv
    command = ("decision-traces", "nexttok", *flags)
    run_command(
        NextTokenConfig, lambda config: run(replace(config, command=command)), flags, prog="decision-traces nexttok"
    )
