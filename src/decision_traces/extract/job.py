"""One extraction from flags to folder: data, model, certificate, plan, loop, meta. The same for every workflow."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from decision_traces import __version__, demo
from decision_traces.capture.buffers import sites_of
from decision_traces.capture.certificate import Certificate, certify, require
from decision_traces.data.example import Example
from decision_traces.data.local import fingerprint
from decision_traces.data.registry import DataSource, load_examples
from decision_traces.errors import CaptureError, DiskSpaceError, Interrupted, OutOfMemory, UsageError, first_line
from decision_traces.extract.engine import Engine, Workflow, disk_estimate, largest_values, row_bytes
from decision_traces.extract.progress import Progress
from decision_traces.models.anatomy import Anatomy, find_anatomy
from decision_traces.models.load import DEMO_MODEL, LoadedModel, ModelSource, load_decoder
from decision_traces.schema import (
    CAPTURES,
    CONVENTIONS,
    FORMAT_VERSION,
    POST_ATTN_CONVENTIONS,
    TOKENS_FILE,
    ArraySpec,
    Capture,
    Dims,
    StorageDtype,
    arrays_for,
)
from decision_traces.store.place import default_root, run_id
from decision_traces.store.writer import RunLayout, RunWriter, free_bytes, refuse_existing
from decision_traces.tokens import Encoding, encode, pad_id

_MOST_BLOCK_ROWS: Final = 256
_PACKAGES: Final = ("torch", "transformers", "tokenizers", "zarr", "zarrs", "numpy", "pyarrow")


@runtime_checkable
class JobWorkflow(Workflow, Protocol):
    """A workflow as a job needs it: the loop's part, and the figures for the meta."""

    def figures(self, tokens: pa.Table) -> Mapping[str, Any]:
        """Return accuracy figures from the finished `tokens.parquet`."""


WorkflowFactory = Callable[[Sequence[Example], Sequence[Encoding], LoadedModel, int, int], JobWorkflow]
"""Examples, encodings, model, pad id, T → the workflow."""


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The options every extraction has; see `NextTokenConfig` for their meaning."""

    capture: tuple[Capture, ...]
    dtype: StorageDtype
    max_seq_len: int | Literal["auto"]
    batch_size: int
    block_mb: int
    out_dir: Path | None
    overwrite: bool
    resume: bool
    seed: int
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One extraction.

    Attributes:
        objective: Goes into the meta: next_token, ...
        kind: Last part of the run's name.
        model, data, options: What the user asked for.
        settings: All flags as JSON, for the meta.
        decisive: Those of the settings that decide the workflow's numbers; a resumed run must have the same.
        workflow: Makes the workflow once data and model are there.
    """

    objective: str
    kind: str
    model: ModelSource
    data: DataSource
    options: JobOptions
    settings: Mapping[str, Any]
    decisive: tuple[str, ...]
    workflow: WorkflowFactory


@dataclass(slots=True)
class Clock:
    """Seconds spent in each phase."""

    phases: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, phase: str) -> None:
        """Give the time since the last lap to a phase."""
        now = time.perf_counter()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._last
        self._last = now


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything known before the first forward pass of the run itself."""

    examples: list[Example]
    encodings: list[Encoding]
    loaded: LoadedModel
    anatomy: Anatomy
    certificate: Certificate
    pad: int
    layout: RunLayout


def run_job(job: Job, progress: Progress) -> Path:
    """Do one extraction and return the run's folder."""
    _check_options(job.options)
    clock = Clock()
    prepared = _prepare(job, progress, clock)
    now = datetime.now().astimezone()
    run = (job.options.out_dir or default_root() / _name(job, now, len(prepared.examples))).absolute()
    plan = _plan(job, prepared)
    writer = _open_writer(job, run, prepared, plan)
    if writer.complete:
        return writer.finish()
    clock.lap("plan_s")
    try:
        return _extract_and_commit(job, prepared, plan, writer, progress, clock, now)
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
    plan: Mapping[str, Any],
    writer: RunWriter,
    progress: Progress,
    clock: Clock,
    now: datetime,
) -> Path:
    workflow = job.workflow(
        prepared.examples, prepared.encodings, prepared.loaded, prepared.pad, prepared.layout.dims.n_positions
    )
    rows = [r for b in range(prepared.layout.n_blocks) if b not in writer.done for r in prepared.layout.rows(b)]
    _extract(job, prepared, workflow, writer, progress, rows)
    clock.lap("extract_s")
    writer.join_tables()
    figures = workflow.figures(pq.read_table(writer.folder / TOKENS_FILE))
    clock.lap("tables_s")
    about = {"run_id": writer.run.name, "time": now.isoformat(), "timings": _timings(clock, prepared, rows)}
    return writer.commit({**about, **_meta(job, prepared, writer, plan), **figures})


def _out_of_memory(error: BaseException) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(w in str(error).lower() for w in words)


def _check_options(options: JobOptions) -> None:
    """Refuse what can be refused before anything is loaded."""
    unknown = [c for c in options.capture if c not in CAPTURES]
    if unknown:
        raise UsageError(f"--capture {' '.join(unknown)}: the choices are {', '.join(CAPTURES)}.")
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


def as_settings(config: Any) -> dict[str, Any]:
    """Return a command's flags as JSON values, but for the command line itself."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "command"}
    return {
        name: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for name, v in values.items()
    }


# -- before the first forward pass --------------------------------------------------------------------------


def _prepare(job: Job, progress: Progress, clock: Clock) -> Prepared:
    options = job.options
    torch.manual_seed(options.seed)
    progress.say(f"Reading {job.data.name} ({job.data.split_name})")
    examples = load_examples(job.data)
    clock.lap("read_s")
    progress.say(f"Loading {job.model.location}")
    loaded = load_decoder(_source(job))
    clock.lap("load_s")
    limit = _limit(options.max_seq_len, loaded)
    encodings = encode(loaded.tokenizer, [e.text for e in examples], limit)
    _check_ids(encodings, loaded)
    clock.lap("tokenise_s")
    progress.say("Probing the model and certifying the captures")
    anatomy, pad = find_anatomy(loaded.model, loaded.vocab_size), pad_id(loaded.tokenizer, _embedded(loaded))
    clock.lap("probe_s")
    specs = arrays_for("dec", options.capture)
    certificate = certify(loaded, anatomy, sites_of(specs, anatomy.n_layers), encodings, pad)
    require(certificate, type(loaded.model).__name__)
    clock.lap("certificate_s")
    layout = _layout(options, specs, anatomy, encodings)
    one = row_bytes(specs, layout.dims, options.dtype)
    if one > options.block_mb << 20:
        progress.say(f"One example takes {one / 1e6:,.0f} MB of captures, more than --block_mb {options.block_mb}")
    return Prepared(examples, encodings, loaded, anatomy, certificate, pad, layout)


def _source(job: Job) -> ModelSource:
    source = replace(job.model, attention="eager" if "attn" in job.options.capture else "sdpa")
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
    largest = max((int(e.ids.max()) for e in encodings if e.n_tokens), default=0)
    rows = _embedded(loaded)
    if largest >= rows:
        raise UsageError(
            f"The tokenizer gives the id {largest}, but the model's vocabulary has {rows} entries: "
            "they do not belong together."
        )


def _embedded(loaded: LoadedModel) -> int:
    """Return how many ids the model has an embedding for."""
    return int(loaded.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def _layout(
    options: JobOptions, specs: tuple[ArraySpec, ...], anatomy: Anatomy, encodings: Sequence[Encoding]
) -> RunLayout:
    longest = max(1, *(e.n_tokens for e in encodings))
    dims = Dims(
        n_examples=len(encodings),
        n_layers=anatomy.n_layers,
        n_heads=anatomy.n_heads,
        n_kv_heads=anatomy.n_kv_heads,
        d_head=anatomy.d_head,
        d_model=anatomy.d_model,
        n_positions=longest if options.max_seq_len == "auto" else options.max_seq_len,
    )
    fits = (options.block_mb << 20) // max(1, row_bytes(specs, dims, options.dtype))
    return RunLayout(specs, dims, options.dtype, max(1, min(fits, _MOST_BLOCK_ROWS, len(encodings))))


def _plan(job: Job, prepared: Prepared) -> dict[str, Any]:
    """Return what decides the numbers of a run; a resumed run must agree with all of it."""
    layout, loaded = prepared.layout, prepared.loaded
    return {
        "objective": job.objective,
        "model": job.model.name,
        "weights_digest": loaded.weights_digest(),
        "dataset_fingerprint": fingerprint(prepared.examples),
        "capture": list(dict.fromkeys(job.options.capture)),
        "dtype": layout.dtype,
        "model_dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "attention_implementation": loaded.attention,
        "max_seq_len": layout.dims.n_positions,
        "block_rows": layout.block_rows,
        "batch_size": job.options.batch_size,
        **{name: job.settings[name] for name in job.decisive},
        "packages": {"decision-traces": __version__, **{name: version(name) for name in _PACKAGES}},
    }


def _open_writer(job: Job, run: Path, prepared: Prepared, plan: Mapping[str, Any]) -> RunWriter:
    options = job.options
    if options.resume:
        return RunWriter.resume(run, prepared.layout, plan)
    writer = RunWriter.create(run, prepared.layout, plan, overwrite=options.overwrite)
    need = disk_estimate(prepared.layout, [e.n_tokens for e in prepared.encodings], links=writer.links)
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
    )
    progress.start(len(rows), sum(prepared.encodings[r].n_tokens for r in rows))
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


# -- meta ---------------------------------------------------------------------------------------------------


def _meta(job: Job, prepared: Prepared, writer: RunWriter, plan: Mapping[str, Any]) -> dict[str, Any]:
    dims, loaded, anatomy = prepared.layout.dims, prepared.loaded, prepared.anatomy
    peaks = largest_values(prepared.layout.specs, dims.n_layers, writer.facts())
    return {
        "format_version": FORMAT_VERSION,
        "model": plan["model"],
        "model_path": None if job.model.model_path is None else str(job.model.model_path.resolve()),
        "model_type": loaded.config.model_type,
        "model_class": type(loaded.model).__name__,
        "model_revision": loaded.revision or job.model.revision,
        "weights_digest": plan["weights_digest"],
        "arch": "dec",
        "objective": job.objective,
        "dataset": job.data.name,
        "split": job.data.split_name,
        "dataset_fingerprint": plan["dataset_fingerprint"],
        "n_examples": dims.n_examples,
        "n_choices": None,
        "n_truncated": sum(e.truncated for e in prepared.encodings),
        "max_seq_len": dims.n_positions,
        "num_layers": dims.n_layers,
        "num_heads": dims.n_heads,
        "num_kv_heads": dims.n_kv_heads,
        "head_dim": dims.d_head,
        "d_model": dims.d_model,
        "vocab_size": loaded.vocab_size,
        "dtype": prepared.layout.dtype,
        "capture": plan["capture"],
        "settings": dict(job.settings),
        "logits_are_unembedded": anatomy.logits_are_unembedded,
        "attention_scale": list(anatomy.attention_scale),
        "attention_rows_sum_to_one": prepared.certificate.rows_sum_to_one,
        "final_norm": anatomy.final_norm,
        "conventions": _conventions(prepared),
        "arrays": {
            spec.name: {"shape": list(dims.shape(spec.axes)), "max_abs": peaks[spec.name]}
            for spec in prepared.layout.specs
        },
        "block_rows": prepared.layout.block_rows,
        "certificate": prepared.certificate.to_meta(),
        "environment": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": plan["packages"],
            "device": plan["device"],
            "model_dtype": plan["model_dtype"],
            "attention_implementation": plan["attention_implementation"],
        },
        "command": list(job.options.command),
    }  # fmt: skip


def _conventions(prepared: Prepared) -> dict[str, str]:
    tokenizer = prepared.loaded.tokenizer
    added = tokenizer.convert_ids_to_tokens(tokenizer("")["input_ids"])
    special = f"the tokenizer adds {' '.join(added)} to every text" if added else "the tokenizer adds none"
    post_attn = POST_ATTN_CONVENTIONS[prepared.anatomy.post_attn_kind]
    return {**CONVENTIONS, "post_attn": post_attn, "special_tokens": special}


def _timings(clock: Clock, prepared: Prepared, rows: Sequence[int]) -> dict[str, float]:
    """Return seconds by phase, and the rates over the rows done in this session (not those of a resumed run)."""
    seconds = clock.phases["extract_s"]
    n_tokens = sum(prepared.encodings[r].n_tokens for r in rows)
    rates = {"examples_per_s": len(rows) / seconds, "tokens_per_s": n_tokens / seconds}
    counts = {"n_examples": len(rows), "n_tokens": n_tokens}
    return {name: round(value, 4) for name, value in {**clock.phases, **rates, **counts}.items()}
