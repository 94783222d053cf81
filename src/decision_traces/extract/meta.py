"""What `meta.json` says of a run, and the plan that a resumed run must agree with."""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from decision_traces import __version__
from decision_traces.data.local import fingerprint
from decision_traces.errors import ModelError, first_line
from decision_traces.extract.engine import peak_key
from decision_traces.extract.job import Job, Prepared
from decision_traces.format.arrays import FINETUNE_FILE, site
from decision_traces.format.meta import OUR_FORMAT, ArrayNote, RunMeta
from decision_traces.format.stages import (
    CONVENTIONS,
    KEY,
    POST_ATTN_CONVENTIONS,
    further_conventions,
)
from decision_traces.model.digest import weights_digest
from decision_traces.model.load import LoadedModel
from decision_traces.model.structure import ModuleStructure
from decision_traces.store import RunLayout

_SAID_ELSEWHERE: Final = frozenset(
    {"model", "model_path", "split", "capture", "layers", "heads", "positions", "dtype", "uncertified", "anonymous"}
)
"""Flags that the meta says by keys of their own; what is kept of layers, heads and positions stands in `sides`."""
_DATA_FLAGS: Final = frozenset({"dataset", "text_file", "data_dir", "skip_headings"})
"""Flags that name the data, which texts from memory do not come by."""
PATH_FLAGS: Final = frozenset({"model_path", "data_dir", "text_file", "out_dir"})
_PACKAGES: Final = ("torch", "transformers", "tokenizers", "zarr", "numcodecs", "numpy", "pyarrow")


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
class Written:
    """What is known of a run once all its blocks are there.

    Attributes:
        run_id: Its name.
        time: When it was begun.
        timings: See `timings`.
        facts: Of every block.
        conventions: What the workflow's own columns mean.
        figures: How often the model was right, and how sure.
    """

    run_id: str
    time: datetime
    timings: Mapping[str, float]
    facts: Sequence[Mapping[str, Any]]
    conventions: Mapping[str, str]
    figures: Mapping[str, Any]


def run_plan(job: Job, prepared: Prepared) -> dict[str, Any]:
    """Return what decides the numbers of a run; a resumed run must agree with all of it."""
    layout, loaded = prepared.layout, prepared.loaded
    return {
        "objective": job.task.objective,
        "model": job.model.name,
        "weights_digest": weights_digest(loaded.model),
        "adapter_digest": loaded.adapter_digest,
        "dataset_fingerprint": fingerprint(prepared.examples),
        "capture": list(job.selection.capture),
        "selection": _selection(layout),
        "dtype": layout.dtype,
        "model_dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "attention_implementation": loaded.attention,
        "max_seq_len": layout.dims.n_positions,
        "block_rows": layout.block_rows,
        "batch_size": job.config.batch_size,
        **{name: job.config.settings()[name] for name in job.decisive},
        "format_version": str(OUR_FORMAT),
        "packages": {"decision-traces": __version__, **{name: version(name) for name in _PACKAGES}},
    }


def run_meta(job: Job, prepared: Prepared, plan: Mapping[str, Any], written: Written) -> RunMeta:
    """Return what the run's `meta.json` will say, but for sizes and checksums.

    Args:
        job: What was asked for.
        prepared: What was known before the first forward pass.
        plan: See `run_plan`.
        written: What is known once all blocks are there.
    """
    layout, loaded, structure = prepared.layout, prepared.loaded, prepared.structure
    dims, anonymous = layout.dims, job.config.anonymous
    peaks = largest_values(layout, written.facts)
    return RunMeta(
        run_id=written.run_id,
        time=(written.time.astimezone(UTC) if anonymous else written.time).isoformat(),
        timings=written.timings,
        format_version=OUR_FORMAT,
        model=plan["model"],
        model_path=None if anonymous or job.model.model_path is None else str(job.model.model_path),
        model_type=loaded.config.model_type,
        model_class=type(loaded.model).__name__,
        model_revision=loaded.revision or job.model.revision,
        weights_digest=plan["weights_digest"],
        num_layers=dims.n_layers,
        num_heads=dims.n_heads,
        num_kv_heads=dims.n_kv_heads,
        head_dim=dims.d_head,
        d_model=dims.d_model,
        vocab_size=loaded.vocab_size,
        sides=layout.sides,
        layer_heads=_layer_heads(structure),
        rows_padded=structure.pads,
        pad_id=prepared.pad,
        pad_token=loaded.tokenizer.convert_ids_to_tokens([prepared.pad])[0] or "",
        logits_are_unembedded=structure.logits_are_unembedded,
        logit_factor=None if structure.logits is None else structure.logits.factor,
        logit_cap=None if structure.logits is None else structure.logits.cap,
        attention_scale=tuple(a.scale for a in structure.main.attention(cross=False)),
        attention_rows_sum_to_one=_sums(prepared),
        final_norm=structure.final_norm,
        post_attn=None if "post_attn" in structure.main.missing else structure.main.post_attn_kind,
        task=job.task.model,
        arch=job.arch,
        objective=job.task.objective,
        dataset=job.data.name,
        split=job.data.split_name,
        dataset_fingerprint=plan["dataset_fingerprint"],
        n_examples=dims.n_examples,
        n_choices=dims.n_choices if job.task.reads_choices else None,
        n_truncated=sum(e.truncated for e in prepared.encodings),
        max_seq_len=dims.n_positions,
        dtype=layout.dtype,
        capture=tuple(plan["capture"]),
        missing=dict(prepared.missing),
        settings=_settings(job),
        conventions={**_conventions(job, prepared), **written.conventions},
        arrays={s.name: ArrayNote(layout.dims_of(s).shape(s), peaks[s.name]) for s in layout.specs},
        block_rows=layout.block_rows,
        certificate=prepared.certificate.to_meta(),
        uncertified=bool(prepared.certificate.failed),
        unused_weights=loaded.unused,
        adapter=_adapter(loaded, anonymous=anonymous),
        fresh_parameters=tuple(loaded.fresh),
        lineage=None if prepared.lineage is None else _told(prepared.lineage, anonymous=anonymous),
        environment=_environment(plan, anonymous=anonymous),
        command=() if anonymous else job.config.command,
        figures=written.figures,
    )


def _settings(job: Job) -> dict[str, Any]:
    """Return the flags that nothing else in the meta says; without paths where the run is to be anonymous."""
    elsewhere = _SAID_ELSEWHERE if job.data.own is None else _SAID_ELSEWHERE | _DATA_FLAGS
    told = {name: value for name, value in job.config.settings().items() if name not in elsewhere}
    return {n: v for n, v in told.items() if n not in PATH_FLAGS} if job.config.anonymous else told


def _environment(plan: Mapping[str, Any], *, anonymous: bool) -> dict[str, Any]:
    told = {name: plan[name] for name in ("packages", "device", "model_dtype", "attention_implementation")}
    here = {} if anonymous else {"system": platform.system()}
    return {"python": platform.python_version(), **here, **told}


def _told(lineage: Mapping[str, Any], *, anonymous: bool) -> dict[str, Any]:
    """Return the lineage; without what it says of the machine where the run is to be anonymous."""
    own = {"settings", "base_model_path", "train_seconds", "time"} if anonymous else set()
    return {name: value for name, value in lineage.items() if name not in own}


def lineage(model_path: Path | None, digest: str, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Return what our trainer left beside a checkpoint (base model, data, seed, accuracy), where it is about it.

    Args:
        model_path: The checkpoint's folder.
        digest: Of the weights that were loaded from it.
        say: Is told where it is about other weights, and not taken over.

    Raises:
        ModelError: The trainer's file cannot be read.
    """
    path = None if model_path is None else model_path / FINETUNE_FILE
    if path is None or not path.is_file():
        return None
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({first_line(error)}). Remove it, or train again.") from error
    if isinstance(told, dict) and told.get("weights_digest") == digest:
        return told
    say(f"{path} is about other weights than those loaded: the run does not take its lineage from it.")
    return None


def _adapter(loaded: LoadedModel, *, anonymous: bool) -> dict[str, Any] | None:
    """Return what was applied to the base weights; of another base only its name, where paths are not told."""
    adapter = loaded.adapter
    if adapter is None:
        return None
    base = Path(adapter.base).name if anonymous else adapter.base
    return {
        "kind": adapter.kind,
        "base": None if adapter.base == adapter.location else base,
        "digest": loaded.adapter_digest,
    }


def _conventions(job: Job, prepared: Prepared) -> dict[str, str]:
    tokenizer = prepared.loaded.tokenizer
    added = tokenizer.convert_ids_to_tokens(tokenizer("")["input_ids"])
    special = f"the tokenizer adds {' '.join(added)} to every text" if added else "the tokenizer adds none"
    if job.config.settings().get("add_special_tokens") == "no":
        special = "none were added (--add_special_tokens no)"
    if begun := sum(e.own_start for e in prepared.encodings):
        special += f"; {begun} texts begin with the start token themselves and got no second one"
    missing = {name: f"missing: {reason}" for name, reason in prepared.missing.items()}
    stack = prepared.structure.main
    post_attn = {"post_attn": POST_ATTN_CONVENTIONS[stack.post_attn_kind]} if "post_attn" not in stack.missing else {}
    extra = further_conventions({spec.stage for spec in prepared.layout.specs})
    return {**CONVENTIONS, **post_attn, **extra, **missing, "special_tokens": special}


def _sums(prepared: Prepared) -> dict[str, bool]:
    """Return for each attention array whether its rows sum to one."""
    sums = prepared.certificate.sums_to_one
    return {
        spec.name: sums.get(site(spec.side, spec.stage), True) for spec in prepared.layout.specs if KEY in spec.axes
    }


def _selection(layout: RunLayout) -> dict[str, Any]:
    """Return what is kept of layers, heads and positions, None or "all" where everything is."""
    dims = layout.dims
    return {"layers": dims.layers, "heads": dims.heads, "positions": dims.positions}


def _layer_heads(structure: ModuleStructure) -> dict[str, list[dict[str, int]]] | None:
    """Return the heads of every layer where layers differ; smaller ones are filled up with zeros in the arrays."""
    found = {}
    for side, stack in structure.stacks.items():
        plans = stack.attention(cross=False)
        sizes = [(p.n_heads, p.n_kv_heads, p.d_head, p.d_value) for p in plans]
        if len(set(sizes)) > 1:
            names = ("layer", "n_heads", "n_kv_heads", "d_head", "d_value")
            found[str(side)] = [dict(zip(names, (p.layer, *s), strict=True)) for p, s in zip(plans, sizes, strict=True)]
    return found or None


def timings(clock: Clock, prepared: Prepared, rows: Sequence[int]) -> dict[str, float]:
    """Return seconds by phase, and the rates over the rows done in this session (not those of a resumed run)."""
    seconds = clock.phases["extract_s"]
    n_tokens = sum(e.n_tokens for e in prepared.encodings_of(rows))
    rates = {"examples_per_s": len(rows) / seconds, "tokens_per_s": n_tokens / seconds}
    counts = {"n_examples": len(rows), "n_tokens": n_tokens}
    return {name: round(value, 4) for name, value in {**clock.phases, **rates, **counts}.items()}


def largest_values(layout: RunLayout, facts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the largest absolute value of every array over all blocks."""
    largest = dict.fromkeys((spec.name for spec in layout.specs), 0.0)
    for place, specs in layout.places().items():
        peak = max((fact["peaks"].get(peak_key(place), 0.0) for fact in facts), default=0.0)
        for spec, _ in specs:
            largest[spec.name] = max(largest[spec.name], peak)
    return largest
