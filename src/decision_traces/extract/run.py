"""One extraction from flags to folder: data, model, certificate, plan, loop, meta. The same for every workflow."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow.parquet as pq
import torch

from decision_traces import demo
from decision_traces.capture.certificate import certify_as_padded, describe_failures, prove, require
from decision_traces.errors import (
    CaptureError,
    DiskSpaceError,
    Interrupted,
    OutOfMemory,
    UnsupportedArchitecture,
    UsageError,
    first_line,
)
from decision_traces.extract.engine import Engine, Workflow, disk_estimate, row_bytes
from decision_traces.extract.job import Job, JobOptions, JobWorkflow, Material, Prepared
from decision_traces.extract.meta import Clock, run_meta, run_plan, timings
from decision_traces.extract.progress import Progress
from decision_traces.extract.selection import choose
from decision_traces.models.anatomy import Anatomy
from decision_traces.models.choice_head import choice_head
from decision_traces.models.load import DEMO_MODEL, LoadedModel, ModelSource, load_model
from decision_traces.models.probe import find_anatomy
from decision_traces.models.unembed_file import UNEMBED_DIR, save_unembedding
from decision_traces.schema import CAPTURES, LOGITS, TOKENS_FILE, Side
from decision_traces.store.disk import free_bytes, refuse_existing
from decision_traces.store.layout import RunLayout
from decision_traces.store.place import default_root, run_id
from decision_traces.store.writer import RunWriter
from decision_traces.tokens import Encoding, pad_id, random_encodings

_MOST_BLOCK_ROWS: Final = 256
_MOST_SMALL_ROWS: Final = 4096
_SMALL_BLOCK: Final = 128 << 20


def run_job(job: Job, progress: Progress) -> Path:
    """Do one extraction and return the run's folder."""
    _check_options(job.options)
    if job.options.selection.positions == "next" and job.next_position is None:
        raise UsageError(
            "--positions next: these runs have no one position of their prediction. Give last, or numbers."
        )
    clock = Clock()
    prepared = _prepare(job, progress, clock)
    now = datetime.now().astimezone()
    run = (job.options.out_dir or default_root() / _name(job, now, len(prepared.examples))).absolute()
    plan = run_plan(job, prepared)
    # Before anything is written: a workflow may find that it cannot be done with this model.
    workflow = job.workflow(_material(prepared))
    writer = _open_writer(job, run, prepared, plan)
    if writer.complete:
        return writer.finish()
    if job.options.store_unembed:
        _store_head(prepared, writer)
    clock.lap("plan_s")
    try:
        return _extract_and_commit(job, prepared, workflow, plan, writer, progress, clock, now)
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped. {_what_is_left(writer, prepared)}") from None
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        left = _what_is_left(writer, prepared)
        raise OutOfMemory(
            f"Not enough memory ({first_line(error)}). Use less with --batch_size, --block_mb, --max_seq_len or fewer "
            f"--capture. {left}"
        ) from error


def _extract_and_commit(
    job: Job,
    prepared: Prepared,
    workflow: JobWorkflow,
    plan: Mapping[str, Any],
    writer: RunWriter,
    progress: Progress,
    clock: Clock,
    now: datetime,
) -> Path:
    rows = [r for b in range(prepared.layout.n_blocks) if b not in writer.done for r in prepared.layout.rows(b)]
    _extract(job, prepared, workflow, writer, progress, rows)
    clock.lap("extract_s")
    writer.join_tables()
    figures = workflow.figures(pq.read_table(writer.folder / TOKENS_FILE))
    clock.lap("tables_s")
    about = {"run_id": writer.run.name, "time": now.isoformat(), "timings": timings(clock, prepared, rows)}
    return writer.commit({**about, **run_meta(job, prepared, writer, plan, workflow.conventions()), **figures})


def _material(prepared: Prepared) -> Material:
    sides = prepared.layout.sides
    return Material(
        prepared.examples,
        prepared.encodings,
        prepared.loaded,
        prepared.pad,
        (sides["enc"] if len(sides) > 1 else prepared.layout.dims).n_positions,
        sides["dec"].n_positions if len(sides) > 1 else 0,
        any(spec.stage == LOGITS for spec in prepared.layout.specs),
    )


def _store_head(prepared: Prepared, writer: RunWriter) -> None:
    """Keep the model's head beside its traces: final norm and unembedding, or the multiple-choice head."""
    folder = writer.folder / UNEMBED_DIR
    if prepared.loaded.task == "multiple_choice":
        choice_head(prepared.loaded, prepared.anatomy).save(folder)
        return
    try:
        save_unembedding(prepared.loaded, prepared.anatomy.final_norm, folder)
    except UnsupportedArchitecture:
        writer.discard()
        raise


def _out_of_memory(error: BaseException) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(w in str(error).lower() for w in words)


def _check_options(options: JobOptions) -> None:
    """Refuse what can be refused before anything is loaded."""
    unknown = [c for c in options.selection.capture if c not in CAPTURES]
    if unknown:
        raise UsageError(f"--capture {' '.join(unknown)}: the choices are {', '.join(CAPTURES)}.")
    options.selection.check()
    for name in ("batch_size", "block_mb"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)}: needs at least 1.")
    if options.max_seq_len != "auto" and options.max_seq_len < 1:
        raise UsageError(f"--max_seq_len {options.max_seq_len}: needs at least 1, or auto.")
    if options.resume and options.out_dir is None:
        raise UsageError("--resume needs --out_dir: the folder of the run to go on with.")
    if options.out_dir is not None:
        refuse_existing(options.out_dir.absolute(), overwrite=options.overwrite)


def _name(job: Job, now: datetime, n: int) -> str:
    return run_id(now, job.model.name.split("/")[-1], job.data.name, job.data.split_name, n, job.kind)


# -- before the first forward pass --------------------------------------------------------------------------


def _prepare(job: Job, progress: Progress, clock: Clock) -> Prepared:
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
    one = row_bytes(layout)
    if one > job.options.block_mb << 20:
        progress.say(f"One example takes {one / 1e6:,.0f} MB of captures, more than --block_mb {job.options.block_mb}")
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
    fits = (options.block_mb << 20) // max(1, row_bytes(one))
    return replace(one, block_rows=max(1, min(fits, _most_rows(one), n_examples))), kept.missing


def _most_rows(layout: RunLayout) -> int:
    """Return the most examples of a block: more where they take little, so that there are not too many files."""
    return max(_MOST_BLOCK_ROWS, min(_MOST_SMALL_ROWS, _SMALL_BLOCK // max(1, row_bytes(layout))))


def _open_writer(job: Job, run: Path, prepared: Prepared, plan: Mapping[str, Any]) -> RunWriter:
    options = job.options
    if options.resume:
        return RunWriter.resume(run, prepared.layout, plan)
    writer = RunWriter.create(run, prepared.layout, plan, overwrite=options.overwrite)
    need = disk_estimate(prepared.layout, prepared.encodings, links=writer.links)
    free = free_bytes(writer.folder)
    if need > free:
        writer.discard()
        raise DiskSpaceError(
            f"This run may take {need / 1e9:,.2f} GB and {run.parent} has {free / 1e9:,.2f} GB free. "
            "Keep less (--capture, --limit, --max_seq_len), or choose another place with --out_dir."
        )
    return writer


# -- the run itself -----------------------------------------------------------------------------------------


def _extract(
    job: Job,
    prepared: Prepared,
    workflow: Workflow,
    writer: RunWriter,
    progress: Progress,
    rows: Sequence[int],
) -> None:
    engine = Engine(
        prepared.loaded,
        prepared.anatomy,
        prepared.encodings,
        prepared.layout,
        job.options.batch_size,
        prepared.pad,
        job.next_position,
    )
    progress.start(len(rows), sum(e.n_tokens for e in prepared.encodings_of(rows)))
    try:
        engine.run(workflow, writer, progress)
    except CaptureError:
        writer.discard()
        raise
    finally:
        progress.finish()


def _what_is_left(writer: RunWriter, prepared: Prepared) -> str:
    """Remove a partial folder without a finished block, or say what is in it."""
    if not writer.done:
        writer.discard()
        return "No block was written yet; nothing is left behind."
    rows = sum(len(prepared.layout.rows(b)) for b in writer.done)
    return (
        f"{rows} of {len(prepared.examples)} examples are kept in {writer.folder}; "
        f"the same command with --out_dir {writer.run} --resume goes on from there, deleting that folder starts over."
    )
