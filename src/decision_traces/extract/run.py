"""One extraction from flags to folder: data, model, certificate, plan, loop, meta. The same for every workflow."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from decision_traces.errors import (
    CaptureError,
    DiskSpaceError,
    Interrupted,
    OutOfMemory,
    UnsupportedArchitecture,
    first_line,
)
from decision_traces.extract.batching import token_budget
from decision_traces.extract.config import ExtractConfig
from decision_traces.extract.cost import RunCost, cost_of, disk_estimate
from decision_traces.extract.engine import Engine
from decision_traces.extract.job import Job, Prepared, Workflow
from decision_traces.extract.meta import Clock, Written, lineage, run_meta, run_plan, timings
from decision_traces.extract.prepare import prepare
from decision_traces.extract.progress import Progress
from decision_traces.folders.disk import free_bytes
from decision_traces.folders.place import FolderPlace
from decision_traces.format.arrays import TOKENS_FILE, UNEMBED_DIR
from decision_traces.format.heads import HEADS
from decision_traces.memory import freed_memory_kept, give_back, out_of_memory
from decision_traces.model.choice_head import choice_head
from decision_traces.model.kernels import any_shape_of_batch
from decision_traces.model.unembed_file import save_unembedding
from decision_traces.store import RunWriter, default_root, is_begun, is_whole, run_id, run_place
from decision_traces.tracing.self_check.evidence import run_layers


@any_shape_of_batch()
def run_job(job: Job, progress: Progress) -> Path:
    """Do one extraction and return the run's folder."""
    clock = Clock()
    with ExitStack() as held:
        place = None if job.config.out_dir is None else held.enter_context(_place(job.config, job.config.out_dir))
        with _in_a_sentence(lambda: "Nothing was written."):
            prepared = prepare(job, progress, clock)
        now = datetime.now().astimezone()
        if place is None:
            name = _name(job, now, len(prepared.examples))
            place = held.enter_context(_place(job.config, default_root() / name))
        return _run(job, prepared, place, progress, clock, now)


def _run(job: Job, prepared: Prepared, place: FolderPlace, progress: Progress, clock: Clock, now: datetime) -> Path:
    """Write the run into its place, which is held."""
    with _in_a_sentence(lambda: "Nothing was written."):
        plan = run_plan(job, prepared)
        told = lineage(job.model.model_path, plan["weights_digest"], progress.say)
        prepared = replace(prepared, lineage=told)
        # Before anything is written: a workflow may find that it cannot be done with this model.
        workflow = job.workflow(prepared)
    writer = _open_writer(job, place, prepared, plan)
    with _in_a_sentence(lambda: _what_is_left(writer, prepared)):
        if writer.complete:
            return writer.finish()
        if not job.config.resume:
            _require_space(writer, prepared)
        if job.config.store_unembed:
            _store_head(prepared, writer)
        give_back(prepared.loaded.model)
        clock.lap("plan_s")
        return _extract_and_commit(job, prepared, workflow, plan, writer, progress, clock, now)


@any_shape_of_batch()
def plan_job(job: Job, progress: Progress) -> RunCost:
    """Return what an extraction would take; one batch is computed, nothing is written.

    Raises:
        TraceError: One of its children: what would stop the extraction before its first block stops this.
    """
    if job.config.out_dir is not None:
        with _place(job.config, job.config.out_dir):
            pass  # what is in the way of the extraction is said here too
    with _in_a_sentence(lambda: "Nothing was written."):
        prepared = prepare(job, progress, Clock())
    cost = cost_of(prepared, token_budget(prepared.loaded.device), n_tables=job.n_tables)
    tried = list(prepared.batches(prepared.encodings))
    if not tried:
        return cost
    middle = tried[len(tried) // 2]
    with torch.inference_mode():
        run_layers(prepared.loaded, middle)
        start = time.perf_counter()
        run_layers(prepared.loaded, middle)
    rate = middle.input_ids.numel() / (time.perf_counter() - start)
    return replace(cost, seconds=sum(batch.input_ids.numel() for batch in tried) / rate)


@contextmanager
def _in_a_sentence(what_is_left: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C and a full memory into a sentence that says what is left, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped. {what_is_left()}") from None
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemory(
            f"Not enough memory ({first_line(error)}). Use less with --max_seq_len, --batch_size or fewer "
            f"--capture. {what_is_left()}"
        ) from error


def _extract_and_commit(
    job: Job,
    prepared: Prepared,
    workflow: Workflow,
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
    seconds = timings(clock, prepared, rows)
    written = Written(writer.run.name, now, seconds, writer.facts(), workflow.conventions(), figures)
    return writer.commit(run_meta(job, prepared, plan, written).as_json())


def _store_head(prepared: Prepared, writer: RunWriter) -> None:
    """Keep the model's head beside its traces: final norm and unembedding, or the multiple-choice head."""
    folder = writer.folder / UNEMBED_DIR
    if HEADS[prepared.loaded.task].choices:
        choice_head(prepared.loaded, prepared.structure).save(folder)
        return
    ending = prepared.structure.logits
    try:
        save_unembedding(
            prepared.loaded, prepared.structure.final_norm, folder, None if ending is None else ending.shift
        )
    except UnsupportedArchitecture:
        writer.discard()
        raise


def _place(options: ExtractConfig, run: Path) -> FolderPlace:
    return run_place(run, overwrite=options.overwrite, resume=options.resume)


def _name(job: Job, now: datetime, n: int) -> str:
    return run_id(now, job.model.name.split("/")[-1], job.data.name, job.data.split_name, n, job.task.run_word)


def _open_writer(job: Job, place: FolderPlace, prepared: Prepared, plan: Mapping[str, Any]) -> RunWriter:
    if job.config.resume:
        return RunWriter.resume(place, prepared.layout, plan)
    return RunWriter.create(place, prepared.layout, plan)


def _require_space(writer: RunWriter, prepared: Prepared) -> None:
    """Refuse a run that its disk has no room for; nothing is left of it."""
    need = disk_estimate(prepared.layout, prepared.encodings, links=writer.links)
    free = free_bytes(writer.folder)
    if need > free:
        writer.discard()
        raise DiskSpaceError(
            f"This run may take {need / 1e9:,.2f} GB and {writer.run.parent} has {free / 1e9:,.2f} GB free. "
            "Keep less (--capture, --limit, --max_seq_len), or choose another place with --out_dir."
        )


# -- the run itself -----------------------------------------------------------------------------------------


def _extract(
    job: Job,
    prepared: Prepared,
    workflow: Workflow,
    writer: RunWriter,
    progress: Progress,
    rows: Sequence[int],
) -> None:
    engine = Engine(prepared, job.next_position)
    progress.start(len(rows), sum(e.n_tokens for e in prepared.encodings_of(rows)))
    try:
        with freed_memory_kept():
            engine.run(workflow, writer, progress)
    except CaptureError:
        writer.discard()
        raise
    finally:
        progress.finish()


def _what_is_left(writer: RunWriter, prepared: Prepared) -> str:
    """Remove a partial folder without a finished block, or say what is in it."""
    if not is_begun(writer.folder) and is_whole(writer.run):
        return f"It came too late: {writer.run} is finished."
    done = range(prepared.layout.n_blocks) if writer.complete else writer.done
    if not done:
        writer.discard()
        return "No block was written yet; nothing is left behind."
    rows = sum(len(prepared.layout.rows(b)) for b in done)
    return (
        f"{rows} of {len(prepared.examples)} examples are kept in {writer.folder}; "
        f"the same command with --out_dir {writer.run} --resume goes on from there, deleting that folder starts over."
    )
