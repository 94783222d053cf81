"""`decision-traces attribution`: which parts of the model decide between the true token and its competitor."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import tyro
from rich.console import Console

from decision_traces.analysis.attribution.direct import direct_attribution, refuse_unsplit
from decision_traces.analysis.attribution.encoders import choice_parts, lead_of_the_right
from decision_traces.analysis.attribution.grid import write_choice_contributions, write_contribution_grid
from decision_traces.analysis.attribution.heads import HeadWriter, find_head_writers
from decision_traces.analysis.decisions import decisions_of, text_note
from decision_traces.analysis.grids import write_words
from decision_traces.analysis.lens.unembedding import (
    Unembedding,
    find_tokenizer,
    load_run_model,
    load_unembedding,
    of_run,
)
from decision_traces.analysis.results import Attribution
from decision_traces.analysis.states import path_of
from decision_traces.cli._app import make_console, run_command
from decision_traces.cli._counting import counting
from decision_traces.cli._written import kept_in_run, write_result
from decision_traces.errors import ModelError, UnsupportedArchitecture, UsageError
from decision_traces.format.analyses import ATTRIBUTION_PICTURE, ATTRIBUTION_TABLE
from decision_traces.model.load import quiet_transformers
from decision_traces.store import TraceStore
from decision_traces.tasks.decisions import Kind
from decision_traces.viz.attributions import save_attribution
from decision_traces.viz.style import run_title
from decision_traces.viz.tables import attribution_table, head_table


@dataclass(frozen=True, slots=True)
class AttributionCommand:
    """Split the lead of the true token (or choice) over its competitor into what each layer, MLP and head added.

    Attributes:
        run: The run folder; a decoder's must hold `resid`, and for single heads `attn` and `qkv` too. An encoder is
            run once more.
        model_path: Folder of the model, where it no longer lies where the run found it.
        top_k: How many of the heads that push most to show.
        of: Decoders: the decisions that tables and pictures are about: next, the text's last token; after, what comes
            after the text: what the model says, against its runner-up; answer. Default: the run's own.
        all_positions: Decoders: split every position for the page (`decision-traces view`), not only those of the
            decisions.
        device: auto, cpu, cuda, cuda:1, mps.
        trust_remote_code: Run Python that the model brings along; only for models of people you trust.
        out: Keep the results in this folder instead of the run; a run that can only be read needs it.
        quiet: Print nothing; the files are written.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    model_path: Path | None = None
    top_k: int = 8
    of: Kind | None = None
    all_positions: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    device: str = "auto"
    trust_remote_code: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    out: Path | None = None
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def run(args: AttributionCommand) -> int:
    """Attribute, print the tables, and put table and picture into the run."""
    console, store = make_console(), TraceStore(args.run, results=args.out)
    console.quiet = args.quiet
    if args.top_k < 1:
        raise UsageError(f"--top_k {args.top_k}: needs at least 1.")
    encoder = store.arch == "enc" and store.n_choices is not None
    with kept_in_run(store, "attribution", args, console) as folder:
        result = _encoder(store, args, folder) if encoder else _decoder(store, args, console, folder)
        _print(result, args, console)
        what = "choice" if encoder else "token"
        title = f"{run_title('Direct logit attribution', store.meta)}; true {what} against its competitor"
        title += "" if result.logit_cap is None else ", before the cap"
        save_attribution(result, folder / ATTRIBUTION_PICTURE, title)
        write_result(folder / ATTRIBUTION_TABLE, result)
    return 0


def _print(result: Attribution, args: AttributionCommand, console: Console) -> None:
    console.print(attribution_table(result))
    if result.heads is not None:
        console.print(head_table(result, args.top_k))
    by_head = "" if result.head_error is None else f", heads to attention's share within {result.head_error:.2g}"
    console.print(f"Parts sum to the model's logit difference within {result.sum_error:.2g} logits{by_head}.")
    if result.logit_cap is not None:
        console.print(
            f"The model caps its logits at {result.logit_cap:g}, behind this sum: the lead before the cap is split up.",
            soft_wrap=True,
        )


def _encoder(store: TraceStore, args: AttributionCommand, folder: Path) -> Attribution:
    """Attribute the lead of the right choice, with all norms frozen."""
    loaded = load_run_model(store, args.model_path, args.device, trust_remote_code=args.trust_remote_code)
    with counting(make_console(stderr=True), "attribution", quiet=args.quiet) as progress:
        parts = choice_parts(store, loaded, progress=progress)
    result = lead_of_the_right(store, parts)
    write_choice_contributions(folder, result, parts)
    return result


def _decoder(store: TraceStore, args: AttributionCommand, console: Console, folder: Path) -> Attribution:
    """Attribute the lead of the true token."""
    # What the run lacks is said before a model is loaded.
    decisions_of(store, args.of)
    refuse_unsplit(store)
    path_of(store, "post_mlp")
    if note := text_note(store):
        console.print(note, soft_wrap=True)
    unembedding, heads = _load(store, args, console)
    with counting(make_console(stderr=True), "attribution", quiet=args.quiet) as progress:
        result = direct_attribution(store, unembedding, heads, kind=args.of, progress=progress)
    with counting(make_console(stderr=True), "for the page", quiet=args.quiet) as progress:
        ids = write_contribution_grid(
            store, unembedding, heads, folder, all_positions=args.all_positions, progress=progress
        )
    with quiet_transformers():
        tokenizer = find_tokenizer(store, args.model_path, trust_remote_code=args.trust_remote_code)
        write_words(folder, store, ids, tokenizer)
    return result


def _load(
    store: TraceStore, args: AttributionCommand, console: Console
) -> tuple[Unembedding, tuple[HeadWriter, ...] | None]:
    """Return the unembedding, and the way of the heads where the run and the model allow it.

    Heads need the model's output projections; what a run keeps of its model (`unembed/`) is not enough for them.
    """
    missing = [name for name in ("dec_self_attn", "dec_self_v") if not store.has(name)]
    if missing:
        console.print("Attention is not split by head: that needs --capture attn qkv resid.")
        return load_unembedding(store, args.model_path, args.device, trust_remote_code=args.trust_remote_code), None
    try:
        loaded = load_run_model(store, args.model_path, args.device, trust_remote_code=args.trust_remote_code)
    except ModelError as reason:
        unembedding = load_unembedding(store, args.model_path, args.device, trust_remote_code=args.trust_remote_code)
        console.print(f"Attention is not split by head: {reason}", soft_wrap=True)
        return unembedding, None
    unembedding = of_run(store, loaded)
    try:
        return unembedding, find_head_writers(store, loaded)
    except (UnsupportedArchitecture, UsageError) as reason:  # the model's heads, or what the run keeps of them
        console.print(f"Attention is not split by head: {reason}", soft_wrap=True)
        return unembedding, None


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_command(AttributionCommand, run, argv, prog="decision-traces attribution")
