"""The lens of a run: for a decoder through its unembedding, for an encoder that reads choices through its head."""

from pathlib import Path

from decision_traces.analysis.decisions import text_note
from decision_traces.analysis.grids import write_words
from decision_traces.analysis.lens.by_choice import lens_by_choice
from decision_traces.analysis.lens.depth import decision_depth, depth_by_choice
from decision_traces.analysis.lens.encoders import encoder_lens_by_choice, load_head
from decision_traces.analysis.lens.grid import lens_and_grid
from decision_traces.analysis.lens.logit_lens import logit_lens
from decision_traces.analysis.lens.result import LensResult
from decision_traces.analysis.lens.unembedding import Unembedding, find_tokenizer, load_unembedding
from decision_traces.analysis.options import LensOptions
from decision_traces.analysis.progress import Counting
from decision_traces.analysis.results import LensTrajectories
from decision_traces.analysis.states import Stage
from decision_traces.analysis.writing import write_examples
from decision_traces.format.analyses import CHOICES_TABLE, DEPTH_TABLE, LENS_TABLE
from decision_traces.model.load import quiet_transformers
from decision_traces.store import TraceStore


def run(store: TraceStore, options: LensOptions, counting: Counting, *, page: Path | None = None) -> LensResult:
    """Look through the lens at every decision.

    Args:
        store: The run.
        options: See there.
        counting: Told what is counted.
        page: Folder for what the page draws, of decoders: every position at every depth.

    Raises:
        TraceError: See `logit_lens`, `lens_by_choice` and `encoder_lens_by_choice`.
    """
    if store.task.reads_choices:
        return _of_choices(store, options, counting)
    trust = options.trust_remote_code
    unembedding = load_unembedding(store, options.model_path, options.device, trust_remote_code=trust)
    several = store.task.many is not None
    hidden = (
        _look(store, unembedding, "hidden", options, counting)
        if page is None or several  # the page draws one decision an example
        else _look_and_draw(store, unembedding, options, counting, page)
    )
    written = any(store.has(f"{side}_res_post_attn") for side in ("dec", "enc"))  # the others are states of `hidden`
    middle = (_look(store, unembedding, "post_attn", options, counting),) if written else ()
    choices = lens_by_choice(store, unembedding) if store.task.choices else None
    depth = decision_depth(hidden) if choices is None else depth_by_choice(choices)
    note = text_note(store)
    return LensResult((hidden, *middle), choices, depth, several, () if note is None else (note,))


def write(result: LensResult, folder: Path) -> None:
    """Write the tables of a result."""
    if result.lenses:
        write_examples(folder / LENS_TABLE, *result.lenses)
    if result.choices is not None:
        write_examples(folder / CHOICES_TABLE, result.choices)
    if not result.several:
        write_examples(folder / DEPTH_TABLE, result.depth)


def _of_choices(store: TraceStore, options: LensOptions, counting: Counting) -> LensResult:
    head = load_head(store, options.model_path, options.device, trust_remote_code=options.trust_remote_code)
    with counting("choices") as progress:
        choices = encoder_lens_by_choice(store, head, progress=progress)
    return LensResult((), choices, depth_by_choice(choices))


def _look(
    store: TraceStore, unembedding: Unembedding, stage: Stage, options: LensOptions, counting: Counting
) -> LensTrajectories:
    with counting(f"lens: {stage}") as progress:
        return logit_lens(store, unembedding, stage, top_k=options.top_k, kind=options.of, progress=progress)


def _look_and_draw(
    store: TraceStore, unembedding: Unembedding, options: LensOptions, counting: Counting, page: Path
) -> LensTrajectories:
    """Look, and write what the page draws."""
    with counting("lens") as progress:
        lens, ids = lens_and_grid(
            store,
            unembedding,
            page,
            top_k=options.top_k,
            kind=options.of,
            all_positions=options.all_positions,
            progress=progress,
        )
    with quiet_transformers():
        tokenizer = find_tokenizer(store, options.model_path, trust_remote_code=options.trust_remote_code)
        write_words(page, store, ids, tokenizer)
    return lens
