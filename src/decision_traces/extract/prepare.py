"""Everything before the first forward pass of a run: data, model, certificate, layout. Nothing is written here."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch

from decision_traces import demo
from decision_traces.capture.certificate import certify_as_padded, describe_failures, prove, require
from decision_traces.errors import UnsupportedArchitecture, UsageError, first_line
from decision_traces.extract.cost import MOST_SLOTS, block_rows
from decision_traces.extract.job import Job, Prepared
from decision_traces.extract.meta import Clock
from decision_traces.extract.progress import Progress
from decision_traces.extract.selection import choose
from decision_traces.models.anatomy import Anatomy
from decision_traces.models.load import DEMO_MODEL, LoadedModel, ModelSource, load_model
from decision_traces.models.probe import find_anatomy
from decision_traces.schema import Side
from decision_traces.store.layout import RunLayout
from decision_traces.tokens import Encoding, pad_id, random_encodings


def prepare(job: Job, progress: Progress, clock: Clock) -> Prepared:
    """Read the data, load the model, prove where its inner path lies, and lay out what the run will hold.

    Raises:
        TraceError: One of its children; nothing was written.
    """
    options = job.options
    torch.manual_seed(options.seed)
    progress.say(f"Reading {job.data.name} ({job.data.split_name})")
    examples = job.read(job.data)
    clock.lap("read_s")
    progress.say(f"Loading {job.model.location}")
    loaded = load_model(_source(job), job.task)
    clock.lap("load_s")
    if loaded.fresh and loaded.task == "multiple_choice":  # an encoder's new pooler only reads what is traced
        progress.say(
            f"WARNING: {job.model.location} has no trained multiple-choice head ({', '.join(loaded.fresh)} are random "
            "numbers). Its predictions mean nothing; fine-tune it first (decision-traces finetune)."
        )
    limit = _limit(options.max_seq_len, loaded)
    encodings = job.encode(loaded, examples, limit)
    if not loaded.takes_types:
        encodings = [replace(e, type_ids=None) for e in encodings]
    if not job.cuts:
        _refuse_cut(job, encodings, limit)
    _check_ids(encodings, loaded)
    clock.lap("tokenise_s")
    progress.say("Probing the model and certifying the captures")
    pad = pad_id(loaded.tokenizer, loaded.embedded)
    with _tried_on(loaded):
        anatomy = _proved_anatomy(loaded, pad)
    clock.lap("probe_s")
    layout, missing = _layout(job, anatomy, encodings, len(examples), loaded)
    for name, reason in missing.items():
        progress.say(f"{name} is left out: {reason}")
    sites = tuple(dict.fromkeys(name for name, _ in layout.places()))
    with _tried_on(loaded):
        anatomy, certificate = certify_as_padded(loaded, anatomy, sites, encodings, pad)
    if certificate.failed and job.options.uncertified:
        progress.say(f"WARNING: the certificate failed, and the run says so: {describe_failures(certificate.failed)}")
    else:
        require(certificate, type(loaded.model).__name__)
    clock.lap("certificate_s")
    return Prepared(examples, encodings, loaded, anatomy, certificate, pad, layout, missing)


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


def _proved_anatomy(loaded: LoadedModel, pad: int) -> Anatomy:
    """Probe the model and prove what was found on other input; what fails is missing from then on.

    Raises:
        UnsupportedArchitecture: The layers could not be found, or their stream is not what the model computes.
    """
    found = find_anatomy(loaded.model, loaded.vocab_size, loaded.task)
    anatomy, certificate = prove(loaded, found, random_encodings(loaded.vocab_size, loaded.task), pad, thorough=False)
    if certificate.failed_core:
        figures = describe_failures(certificate.failed_core)
        raise UnsupportedArchitecture(
            f"{type(loaded.model).__name__} was probed, and what was found does not hold on other input: {figures}. "
            "Nothing was extracted, because the traces would not be what the model computed."
        )
    return anatomy


def _source(job: Job) -> ModelSource:
    source = replace(job.model, attention="eager" if "attn" in job.options.selection.capture else "sdpa")
    if source.model == DEMO_MODEL and source.model_path is None:
        return replace(source, model_path=demo.MODEL_DIR)
    return source


def _limit(asked: int | Literal["auto"], loaded: LoadedModel) -> int | None:
    context = loaded.context
    if asked == "auto":
        return context
    if context is not None and asked > context:
        raise UsageError(
            f"--max_seq_len {asked}: {type(loaded.model).__name__} was built for {context} tokens; "
            f"give {context} or less, or auto."
        )
    return asked


def _check_ids(encodings: Sequence[Encoding], loaded: LoadedModel) -> None:
    texts = [e for encoding in encodings for e in (encoding, encoding.target) if e is not None and e.n_tokens]
    largest = max((int(e.ids.max()) for e in texts), default=0)
    rows = loaded.embedded
    if largest >= rows:
        raise UsageError(
            f"The tokenizer gives the id {largest}, but the model's vocabulary has {rows} entries: "
            "they do not belong together."
        )


def _refuse_cut(job: Job, encodings: Sequence[Encoding], limit: int | None) -> None:
    cut = sum(e.truncated for e in encodings)
    if cut:
        raise UsageError(
            f"--max_seq_len {job.options.max_seq_len}: {cut} of {len(encodings)} prompts have more than {limit} "
            "tokens. A cut prompt loses its end, where the answer is read. Give more, or auto, which goes up to the "
            "model's context."
        )


def _layout(
    job: Job, anatomy: Anatomy, encodings: Sequence[Encoding], n_examples: int, loaded: LoadedModel
) -> tuple[RunLayout, Mapping[str, str]]:
    """Return what the run will hold, and why it will not hold some of what was asked for."""
    options = job.options
    longest = max(1, *(e.n_tokens for e in encodings))
    main = longest if options.max_seq_len == "auto" else options.max_seq_len
    if main > max(longest, MOST_SLOTS):
        raise UsageError(
            f"--max_seq_len {main}: every row of tokens.parquet is filled up to T, and the longest text has {longest} "
            f"tokens. Give {MOST_SLOTS} or less, or auto."
        )
    target = max((e.target.n_tokens for e in encodings if e.target is not None), default=0)
    lengths: dict[Side, int] = {side: main for side in anatomy.stacks}
    if len(anatomy.stacks) > 1:
        lengths["dec"] = max(1, target if job.n_target is None else job.n_target)
    kept = choose(
        options.selection,
        anatomy,
        job.prefixes,
        lengths,
        n_examples=n_examples,
        n_choices=len(encodings) // n_examples,
        vocab_size=0 if loaded.task in {"encode", "multiple_choice"} else loaded.vocab_size,
    )
    one = RunLayout(kept.specs, kept.sides, options.dtype, 1)
    return replace(one, block_rows=block_rows(one, encodings, options.block_mb << 20)), kept.missing
