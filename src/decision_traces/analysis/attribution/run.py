"""Attribution of a run: of a decoder from what it holds, of an encoder that reads choices by running it once more."""

from pathlib import Path

from decision_traces.analysis.attribution.direct import direct_attribution
from decision_traces.analysis.attribution.encoders import choice_parts, lead_of_the_right
from decision_traces.analysis.attribution.grid import attribution_and_grid, write_choice_contributions
from decision_traces.analysis.attribution.heads import HeadWriter, find_head_writers
from decision_traces.analysis.attribution.result import AttributionResult
from decision_traces.analysis.decisions import text_note
from decision_traces.analysis.grids import write_words
from decision_traces.analysis.lens.unembedding import (
    Unembedding,
    find_tokenizer,
    load_run_model,
    load_unembedding,
    of_run,
)
from decision_traces.analysis.options import AttributionOptions
from decision_traces.analysis.progress import Counting
from decision_traces.analysis.results import Attribution
from decision_traces.analysis.writing import write_examples
from decision_traces.errors import ModelError, UnsupportedArchitecture, UsageError
from decision_traces.format.analyses import ATTRIBUTION_TABLE
from decision_traces.model.load import quiet_transformers
from decision_traces.store import TraceStore


def run(
    store: TraceStore, options: AttributionOptions, counting: Counting, *, page: Path | None = None
) -> AttributionResult:
    """Split up the lead of every target.

    Args:
        store: The run.
        options: See there.
        counting: Told what is counted.
        page: Folder for what the page draws: the lead over every candidate.

    Raises:
        TraceError: See `direct_attribution` and `encoder_attribution`.
    """
    if store.task.reads_choices:
        return _of_choices(store, options, counting, page)
    unembedding, heads, why = _load(store, options)
    if page is not None:
        leads = _split_and_draw(store, unembedding, heads, options, counting, page)
    else:
        with counting("attribution") as progress:
            leads = direct_attribution(store, unembedding, heads, kind=options.of, progress=progress)
    return AttributionResult(leads, "token", tuple(note for note in (text_note(store), why) if note))


def write(result: AttributionResult, folder: Path) -> None:
    """Write the table of a result."""
    write_examples(folder / ATTRIBUTION_TABLE, result.leads)


def _split_and_draw(
    store: TraceStore,
    unembedding: Unembedding,
    heads: tuple[HeadWriter, ...] | None,
    options: AttributionOptions,
    counting: Counting,
    page: Path,
) -> Attribution:
    """Split up, and write what the page draws."""
    with counting("attribution") as progress:
        leads, ids = attribution_and_grid(
            store, unembedding, heads, page, kind=options.of, all_positions=options.all_positions, progress=progress
        )
    with quiet_transformers():
        tokenizer = find_tokenizer(store, options.model_path, trust_remote_code=options.trust_remote_code)
        write_words(page, store, ids, tokenizer)
    return leads


def _of_choices(
    store: TraceStore, options: AttributionOptions, counting: Counting, page: Path | None
) -> AttributionResult:
    """Attribute the lead of the right choice, with all norms frozen."""
    loaded = load_run_model(store, options.model_path, options.device, trust_remote_code=options.trust_remote_code)
    with counting("attribution") as progress:
        parts = choice_parts(store, loaded, progress=progress)
    leads = lead_of_the_right(store, parts)
    if page is not None:
        write_choice_contributions(page, leads, parts)
    return AttributionResult(leads, "choice")


def _load(
    store: TraceStore, options: AttributionOptions
) -> tuple[Unembedding, tuple[HeadWriter, ...] | None, str | None]:
    """Return the unembedding, the way of the heads, and why attention is not split by head, where it is not.

    Heads need the model's output projections; what a run keeps of its model (`unembed/`) is not enough for them.
    """
    where, trust = (store, options.model_path, options.device), options.trust_remote_code
    if not store.has("dec_head_out") and not all(store.has(name) for name in ("dec_self_attn", "dec_self_v")):
        why = "Attention is not split by head: that needs --capture head_out, or attn qkv."
        return load_unembedding(*where, trust_remote_code=trust), None, why
    try:
        loaded = load_run_model(*where, trust_remote_code=trust)
    except ModelError as reason:
        unembedding = load_unembedding(*where, trust_remote_code=trust)
        return unembedding, None, f"Attention is not split by head: {reason}"
    unembedding = of_run(store, loaded)
    try:
        return unembedding, find_head_writers(store, loaded), None
    except (UnsupportedArchitecture, UsageError) as reason:  # the model's heads, or what the run keeps of them
        return unembedding, None, f"Attention is not split by head: {reason}"
