"""What every extraction command says when it is done."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from decision_traces.cli._app import command_line, make_console, run_command
from decision_traces.cli._progress import make_progress
from decision_traces.extract.config import ExtractConfig
from decision_traces.extract.cost import RunCost
from decision_traces.extract.job import Job
from decision_traces.extract.run import plan_job, run_job
from decision_traces.format.meta import RunMeta
from decision_traces.store import random_head, read_meta
from decision_traces.tasks import TASKS

ConfigT = TypeVar("ConfigT", bound=ExtractConfig)


def run_extraction(
    config_cls: type[ConfigT], make_job: Callable[[ConfigT], Job], name: str, flags: Sequence[str]
) -> NoReturn:
    """Parse the flags of an extraction, run it, and say what came out and what to do next.

    Args:
        config_cls: The command's dataclass.
        make_job: Makes the job of the flags.
        name: The command's name.
        flags: As typed.
    """

    def handler(config: ConfigT) -> int:
        progress = make_progress(make_console(stderr=True), quiet=config.quiet)
        job = make_job(replace(config, command=("decision-traces", name, *flags)))
        if config.plan:
            print_cost(plan_job(job, progress), make_console())
            return 0
        folder = run_job(job, progress)
        if not config.quiet:
            console = make_console()
            report(folder, console)
            console.print(f"Check it: {command_line('decision-traces', 'index', folder, '--validate')}", soft_wrap=True)
        return 0

    run_command(config_cls, handler, flags, prog=f"decision-traces {name}")


def print_cost(cost: RunCost, console: Console) -> None:
    """Print what a run will take."""
    table = Table("array", "shape", "MB", box=box.SIMPLE)
    table.columns[2].justify = "right"
    for name, (shape, size) in cost.arrays.items():
        table.add_row(name, " × ".join(map(str, shape)), f"{size / 1e6:,.1f}" if size else "shared")
    table.add_row("in all", "", f"{cost.total_bytes / 1e6:,.1f}", style="bold")
    console.print(table)
    console.print(
        f"{cost.model} over {cost.n_examples:,} examples, {cost.n_tokens:,} tokens: at most "
        f"{cost.bytes_per_token:,.0f} bytes a token on disk, {cost.n_files:,} files. Layers that arrays share are "
        "stored once.",
        soft_wrap=True,
    )
    console.print(
        f"{cost.n_blocks} blocks of {cost.block_rows} examples: after a crash, --resume redoes one at most. In memory "
        f"{cost.model_bytes / 1e6:,.0f} MB of weights and at most {cost.capture_bytes / 1e6:,.0f} MB of captures, "
        "besides what the model needs to compute.",
        soft_wrap=True,
    )
    if cost.seconds is not None:
        console.print(f"About {cost.seconds:,.0f} s on this machine, judged by one batch.", soft_wrap=True)


def report(folder: Path, console: Console) -> None:
    """Print what a finished run holds, in a few lines."""
    about = RunMeta.read(read_meta(folder))
    timings = about.timings
    console.print(f"Run: {folder}", soft_wrap=True)
    console.print(
        f"{about.n_examples} examples, T = {about.max_seq_len}, {len(about.arrays)} arrays, "
        f"{(about.bytes or 0) / 1e6:,.1f} MB; {timings['extract_s']:.1f} s ({timings['tokens_per_s']:,.0f} tokens/s); "
        f"certificate {_certified(about)}"
    )
    if not about.hard_links:
        console.print("This file system has no hard links: layers that arrays share are stored once for each array.")
    for name, reason in about.missing.items():
        console.print(f"Without {name}: {reason}", soft_wrap=True)
    for line in TASKS[about.objective].headline(about.figures):
        console.print(line, soft_wrap=True)
    if about.n_truncated:
        longest = (about.dims("enc") or about.sides["dec"]).n_positions
        console.print(f"{about.n_truncated} texts were longer than T = {longest} tokens and were cut.")
    if about.unused_weights:
        console.print(f"{len(about.unused_weights)} weights of the checkpoint were not used; the meta names them.")
    if about.random_head:
        console.print(f"WARNING: {random_head(about)}", soft_wrap=True, style="red")


def _certified(about: RunMeta) -> str:
    if about.uncertified:
        return "FAILED: kept with --uncertified, and the run says so wherever it is opened"
    return "passed" if about.certified else "empty: no token to check on"
