"""`decision-traces demo`: the first minute. No network, no flags needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from decision_traces.analysis.attribution.direct import direct_attribution
from decision_traces.analysis.attribution.grid import write_contribution_grid
from decision_traces.analysis.attribution.heads import find_head_writers
from decision_traces.analysis.grids import write_words
from decision_traces.analysis.lens.depth import decision_depth
from decision_traces.analysis.lens.grid import write_lens_grid
from decision_traces.analysis.lens.logit_lens import logit_lens
from decision_traces.analysis.lens.unembedding import load_run_model, of_model
from decision_traces.cli._app import command_line, make_console, run_command
from decision_traces.cli._progress import make_progress
from decision_traces.cli._report import report
from decision_traces.cli._written import write_result
from decision_traces.errors import DamagedRunError
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.format.analyses import ATTRIBUTION_TABLE, DEPTH_TABLE, LENS_PICTURE
from decision_traces.model.load import DEMO_MODEL
from decision_traces.store import TraceStore, failures, new_result, validate_run
from decision_traces.viz.tables import decision_table, kind_table
from decision_traces.viz.trajectories import save_trajectories


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
    loaded = load_run_model(store)
    unembedding = of_model(loaded, store.about.final_norm)
    options = {"all_positions": True}
    with new_result(store, "lens", options, command="demo") as new:
        lens = logit_lens(store, unembedding)
        depth = decision_depth(lens)
        write_result(new.folder / DEPTH_TABLE, depth)
        write_words(
            new.folder, store, write_lens_grid(store, unembedding, new.folder, all_positions=True), loaded.tokenizer
        )
        title = f"Logit lens: {store.about.model} model on {store.about.data}, {store.n} examples"
        save_trajectories(lens, depth, new.folder / LENS_PICTURE, title)
    with new_result(store, "attribution", options, command="demo") as new:
        heads = find_head_writers(store, loaded)
        write_result(new.folder / ATTRIBUTION_TABLE, direct_attribution(store, unembedding, heads))
        ids = write_contribution_grid(store, unembedding, heads, new.folder, all_positions=True)
        write_words(new.folder, store, ids, loaded.tokenizer)
    console.print()
    console.print(decision_table(lens, depth))
    console.print(kind_table(depth, store.tokens.set_index("example_id")["kind"]))
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
