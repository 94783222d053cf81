"""Everything before the first forward pass of a run: data, model, certificate, layout. Nothing is written here."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import torch

from decision_traces import demo
from decision_traces.errors import UnsupportedArchitecture, UsageError, first_line
from decision_traces.extract.cost import block_rows
from decision_traces.extract.job import Job, Prepared
from decision_traces.extract.meta import Clock
from decision_traces.extract.progress import Progress
from decision_traces.extract.reading import refuse_cut, refuse_unread, token_limit
from decision_traces.extract.selection import choose
from decision_traces.extract.turning import refuse_turned, refuse_turning
from decision_traces.format.arrays import Side
from decision_traces.format.heads import HEADS
from decision_traces.memory import out_of_memory
from decision_traces.model.checkpoint import described
from decision_traces.model.discovery.probe import find_structure
from decision_traces.model.faults import LOAD_ERRORS
from decision_traces.model.load import DEMO_MODEL, LoadedModel, ModelSource
from decision_traces.model.modes import Modes
from decision_traces.model.structure import ModuleStructure
from decision_traces.model.task import probe_inputs
from decision_traces.store import RunLayout
from decision_traces.tokens import Encoding, pad_id, random_encodings
from decision_traces.tracing.self_check.certificate import (
    certify_as_padded,
    check_structure,
    describe_failures,
    require,
)

_MOST_POSITIONS: Final = 1 << 25
"""T at most, where no text is longer."""


def prepare(job: Job, progress: Progress, clock: Clock) -> Prepared:
    """Read the data, load the model, prove where its inner path lies, and lay out what the run will hold.

    Raises:
        TraceError: One of its children; nothing was written.
    """
    options = job.config
    torch.manual_seed(options.seed)
    progress.say(f"Reading {job.data.name} ({job.data.split_name})")
    examples = job.read(job.data)
    clock.lap("read_s")
    progress.say(f"Loading {job.model.location}")
    loaded = job.load(_source(job), job.task.model)
    clock.lap("load_s")
    for line in _remarks(loaded, job.model.location):
        progress.say(line)
    limit = token_limit(options.max_seq_len, loaded)
    encodings = job.encode(loaded, examples, limit)
    if not loaded.takes_types:
        encodings = [replace(e, type_ids=None) for e in encodings]
    if not job.cuts:
        refuse_cut(options.max_seq_len, encodings, limit)
    refuse_unread(examples, encodings, loaded)
    clock.lap("tokenise_s")
    progress.say("Probing the model and certifying the captures")
    pad = pad_id(loaded.tokenizer, loaded.embedded)
    modes = Modes(loaded.model)
    _refuse_stopping(loaded)
    refuse_turning(loaded, modes, encodings, pad)
    modes = Modes(loaded.model)
    with _tried_on(loaded):
        structure = _checked_structure(loaded, pad)
    clock.lap("probe_s")
    layout, missing = _layout(job, structure, encodings, len(examples), loaded)
    for name, reason in missing.items():
        progress.say(f"{name} is left out: {reason}")
    sites = tuple(dict.fromkeys(name for name, _ in layout.places()))
    with _tried_on(loaded):
        structure, certificate = certify_as_padded(loaded, structure, sites, encodings, pad)
    refuse_turned(loaded, modes)
    if certificate.failed and job.config.uncertified:
        progress.say(f"WARNING: the certificate failed, and the run says so: {describe_failures(certificate.failed)}")
    else:
        require(certificate, type(loaded.model).__name__)
    clock.lap("certificate_s")
    return Prepared(examples, encodings, loaded, structure, certificate, pad, layout, options.batch_size, missing)


def _remarks(loaded: LoadedModel, location: str) -> Iterator[str]:
    """Yield what is to be said of a model that was not loaded as a whole, or not alone."""
    if loaded.adapter is not None:
        yield f"{location}: the {loaded.adapter.kind} adapter is applied to {loaded.adapter.base}"
    if loaded.unused:
        yield described(loaded.model, loaded.unused, loaded.task)
    if loaded.fresh and HEADS[loaded.task].choices:  # an encoder's new pooler only reads what is traced
        yield (
            f"WARNING: {location} has no trained multiple-choice head ({', '.join(loaded.fresh)} are random "
            "numbers). Its predictions mean nothing; fine-tune it first (decision-traces finetune)."
        )


def _refuse_stopping(loaded: LoadedModel) -> None:
    """Run the model on a few tokens: some take no short rows (Nyströmformer), or their config breaks them.

    Raises:
        UnsupportedArchitecture: With the reason that the model gives.
    """
    inputs = probe_inputs(loaded.task, loaded.vocab_size, loaded.device)
    try:
        with torch.inference_mode():
            loaded.model(**inputs)
    except LOAD_ERRORS as error:
        if out_of_memory(error):
            raise
        raise UnsupportedArchitecture(
            f"{type(loaded.model).__name__} itself does not take the short rows that it is tried on "
            f"({first_line(error)}). Nothing was extracted."
        ) from error


@contextmanager
def _tried_on(loaded: LoadedModel) -> Iterator[None]:
    """Turn a model's refusal of the rows it is tried on (Longformer's head counts separators) into a sentence."""
    try:
        yield
    except AssertionError as error:
        raise UnsupportedArchitecture(
            f"{type(loaded.model).__name__} does not take the short rows that it is tried on ({first_line(error)}). "
            "Nothing was extracted."
        ) from error


def _checked_structure(loaded: LoadedModel, pad: int) -> ModuleStructure:
    """Probe the model and prove what was found on other input; what fails is missing from then on.

    Raises:
        UnsupportedArchitecture: The layers could not be found, or their stream is not what the model computes.
    """
    found = find_structure(loaded.model, loaded.vocab_size, loaded.task)
    structure, certificate = check_structure(
        loaded, found, random_encodings(loaded.vocab_size, loaded.task), pad, thorough=False
    )
    if certificate.failed_core:
        figures = describe_failures(certificate.failed_core)
        raise UnsupportedArchitecture(
            f"{type(loaded.model).__name__} was probed, and what was found does not hold on other input: {figures}. "
            "Nothing was extracted, because the traces would not be what the model computed."
        )
    return structure


def _source(job: Job) -> ModelSource:
    source = replace(job.model, attention="eager" if "attn" in job.selection.capture else "sdpa")
    if source.model == DEMO_MODEL and source.model_path is None:
        return replace(source, model_path=demo.MODEL_DIR)
    return source


def _layout(
    job: Job, structure: ModuleStructure, encodings: Sequence[Encoding], n_examples: int, loaded: LoadedModel
) -> tuple[RunLayout, Mapping[str, str]]:
    """Return what the run will hold, and why it will not hold some of what was asked for."""
    options = job.config
    longest = max(1, *(e.n_tokens for e in encodings))
    main = longest if options.max_seq_len == "auto" else options.max_seq_len
    if main > max(longest, _MOST_POSITIONS):
        raise UsageError(
            f"--max_seq_len {main}: every array has room for T tokens a text, and the longest text has {longest}. "
            f"Give {_MOST_POSITIONS} or less, or auto."
        )
    target = max((e.target.n_tokens for e in encodings if e.target is not None), default=0)
    lengths: dict[Side, int] = {side: main for side in structure.stacks}
    if len(structure.stacks) > 1:
        lengths["dec"] = max(1, target if job.n_target is None else job.n_target)
    kept = choose(
        job.selection,
        structure,
        job.task.prefixes,
        lengths,
        n_examples=n_examples,
        n_choices=len(encodings) // n_examples,
        vocab_size=loaded.vocab_size if HEADS[loaded.task].words else 0,
    )
    one = RunLayout(kept.specs, kept.sides, options.dtype, 1)
    return replace(one, block_rows=block_rows(one, encodings, options.block_mb << 20)), kept.missing
