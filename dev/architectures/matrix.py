"""The matrix: every class built tiny, probed, and its captures certified on input that the probe has not seen."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from decision_traces.errors import TraceError, first_line
from decision_traces.format.arrays import ModelTask
from decision_traces.model.discovery.probe import find_structure_on
from decision_traces.model.load import LoadedModel
from decision_traces.model.structure import ModuleStructure
from decision_traces.tokens import Encoding
from decision_traces.tracing.self_check.certificate import check_structure, describe_failures
from dev.architectures.overrides import NEEDS_MORE
from dev.architectures.tiny import (
    ModelClass,
    NoSdpa,
    NotBuildable,
    build_tiny,
    is_encoder_decoder,
    tiny_inputs,
)

Status = Literal["supported", "partly", "refused", "not applicable", "not buildable"]
"""supported: every stage. partly: some stages missing or derived. refused: nothing, with the reason."""

NO_ATTENTION: Final[Mapping[str, str]] = {
    "falcon_mamba": "a state-space model",
    "fnet": "mixes tokens by a Fourier transform",
    "mamba": "a state-space model",
    "mamba2": "a state-space model",
    "rwkv": "a linear recurrence",
    "xlstm": "a recurrence",
}
"""Model types that have no attention. Only to tell them from those whose attention is not seen, which no probe can."""

_PROBED: Final = ((6, 6), (5, 5))  # lengths of texts and targets that the structure is found on
_CERTIFIED: Final = ((9, 6, 4), (7, 3, 5))  # lengths that it is certified on


@dataclass(frozen=True, slots=True)
class Verdict:
    """What can be traced of one class.

    Attributes:
        which: The class.
        status: See `Status`.
        reason: Why it is refused, not applicable or not buildable.
        missing: Side and stage to the reason why it cannot be had.
        derived: Whether post_attn is derived (parallel blocks).
        hybrid: Of a side with layers without attention, how many have it; the others have their stream alone.
        padded: Whether rows of different lengths may share a batch.
        attention: Implementations that were certified.
        notes: What could not be compared, and why.
        seconds: What building and checking took.
    """

    which: ModelClass
    status: Status
    reason: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    derived: bool = False
    hybrid: tuple[str, ...] = ()
    padded: bool = True
    attention: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def traced(self) -> bool:
        """Whether it counts as supported, wholly or in part."""
        return self.status in {"supported", "partly"}


def check_class(which: ModelClass) -> Verdict:
    """Build one class tiny, trace it under eager and SDPA attention, and say what holds."""
    began = time.perf_counter()
    verdict = _check(which)
    return replace(verdict, seconds=time.perf_counter() - began)


def _check(which: ModelClass) -> Verdict:
    try:
        model = build_tiny(which, "eager")
    except NotBuildable as error:
        return Verdict(which, "not buildable", str(error))
    if which.model_type in NEEDS_MORE:
        return Verdict(which, "refused", f"text alone is not enough: {NEEDS_MORE[which.model_type]}")
    if which.model_type in NO_ATTENTION:
        return Verdict(which, "not applicable", f"it has no attention: {NO_ATTENTION[which.model_type]}")
    verdict = _trace(which, model, "eager")
    if not verdict.traced:
        return verdict
    try:
        sdpa = build_tiny(which, "sdpa")
    except NoSdpa:
        return verdict
    return _both(verdict, _trace(which, sdpa, "sdpa"))


def _both(eager: Verdict, sdpa: Verdict) -> Verdict:
    """Return what holds under both implementations."""
    if not sdpa.traced:
        return replace(sdpa, reason=f"under sdpa attention: {sdpa.reason}")
    missing = {**{k: f"under sdpa: {v}" for k, v in sdpa.missing.items()}, **eager.missing}
    return replace(
        eager,
        status=_status(missing, eager),
        missing=missing,
        padded=eager.padded and sdpa.padded,
        attention=("eager", "sdpa"),
        notes=tuple(dict.fromkeys((*eager.notes, *sdpa.notes))),
    )


def _status(missing: Mapping[str, str], verdict: Verdict) -> Status:
    return "partly" if missing or verdict.derived or verdict.hybrid else "supported"


def task_of(which: ModelClass, model: Any) -> ModelTask:
    """Return what a class of a mapping is asked to do."""
    if is_encoder_decoder(model):
        return "seq2seq"
    return "causal" if which.kind == "seq2seq" else which.kind


def _trace(which: ModelClass, model: Any, attention: str) -> Verdict:
    task = task_of(which, model)
    wordless = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel()))  # all input is ids, drawn at random
    loaded = LoadedModel(model, wordless, model.config, torch.device("cpu"), None, attention, task)
    as_kind = replace(which, kind="seq2seq") if task == "seq2seq" else which
    inputs: dict[str, Any] = tiny_inputs(as_kind, model, _PROBED[0], target_lengths=_PROBED[1])
    if task in {"causal", "seq2seq"}:
        inputs["use_cache"] = False
    try:
        found = find_structure_on(model, inputs, task)
        structure, certificate = check_structure(loaded, found, _encodings(as_kind, model, task), _pad(model))
    except TraceError as error:
        return Verdict(which, "refused", first_line(error))
    if certificate.failed_core:
        return Verdict(which, "refused", describe_failures(certificate.failed_core))
    verdict = Verdict(
        which,
        "supported",
        missing={f"{side}.{stage}": reason for side, stage, reason in structure.missing()},
        derived=_derived(structure),
        hybrid=tuple(_hybrid(structure)),
        padded=structure.pads,
        attention=(attention,),
        notes=certificate.notes,
    )
    return replace(verdict, status=_status(verdict.missing, verdict))


def _derived(structure: ModuleStructure) -> bool:
    return any(s.post_attn_kind == "derived" and "post_attn" not in s.missing for s in structure.stacks.values())


def _hybrid(structure: ModuleStructure) -> Iterator[str]:
    for side, stack in structure.stacks.items():
        n = len(stack.attention(cross=False))
        if 0 < n < stack.n_layers:
            yield f"{side}: {n} of {stack.n_layers} layers have attention"


def _pad(model: Any) -> int:
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    return pad if isinstance(pad, int) and pad >= 0 else 0


def _encodings(which: ModelClass, model: Any, task: ModelTask) -> list[Encoding]:
    """Return ragged rows of random ids for the certificate."""
    inputs = tiny_inputs(which, model, _CERTIFIED[0], seed=5, target_lengths=_CERTIFIED[1])
    ids, mask = (inputs[name].reshape(len(_CERTIFIED[0]), -1) for name in ("input_ids", "attention_mask"))
    if which.model_type == "longformer" and task == "multiple_choice":
        ids[:, :3] = model.config.sep_token_id  # its head looks for three separators in every row
    targets: list[Encoding | None] = [None] * len(ids)
    if task == "seq2seq":
        decoder, decoder_mask = inputs["decoder_input_ids"], inputs["decoder_attention_mask"]
        targets = [_encoding(row, m, None) for row, m in zip(decoder, decoder_mask, strict=True)]
    return [_encoding(row, m, target) for row, m, target in zip(ids, mask, targets, strict=True)]


def _encoding(ids: torch.Tensor, mask: torch.Tensor, target: Encoding | None) -> Encoding:
    n = int(mask.sum())
    return Encoding(ids[:n].numpy().astype(np.int32), np.zeros((n, 2), np.int32), truncated=False, target=target)
