"""Putting edits into a forward pass: into the memory of what a hook gets, or into what attention is about to use.

The stream, and what is added to it, is written where it lies, so that every reader of that memory goes on with what
was written: a residual connection too, not only the module that a hook sits on. Queries, keys and values are exchanged
before they are used, probabilities and head outputs by what attention gives. What an edit leaves alone keeps its bits.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor

from decision_traces.errors import CaptureError, WriteError
from decision_traces.format.arrays import Site, site
from decision_traces.format.stages import CROSS_PARTS, EMBED, FINAL, LOGITS, POST_ATTN, SELF_PARTS, STAGES
from decision_traces.model.discovery.intercept import AttentionCall, Part
from decision_traces.model.discovery.writing import NO_PROBABILITIES
from decision_traces.model.structure import AttentionPlan, HookPoint, ModuleStructure, WritePoint
from decision_traces.tracing.edits import Edit, edited

_PARTS: Final[Mapping[Part, int]] = {"query": 0, "key": 1, "value": 2}
_PROBABILITIES, _OUTPUT = 3, 4  # where they stand in SELF_PARTS and CROSS_PARTS
_OFF: Final = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


LOGITS_TAP: Final = HookPoint("", "output", LOGITS, 0)


def write_point(structure: ModuleStructure, at: Site) -> WritePoint | AttentionPlan:
    """Return where a site is written: a hook point, or an attention call; or the reason why it cannot be."""
    place = _place(structure, at)
    if at[0].endswith(f".{LOGITS}"):
        return "nothing that the model computes reads its logits"
    if isinstance(place, str):
        return place
    side, stage = at[0].split(".")
    return structure.stacks[side].write_points.get((stage, at[1]), place)  # type: ignore[index]


def unreadable(structure: ModuleStructure, at: Site) -> str | None:
    """Return why a site cannot be read; None where it can."""
    place = _place(structure, at)
    return place if isinstance(place, str) else None


def _place(structure: ModuleStructure, at: Site) -> WritePoint | AttentionPlan:
    """Return the hook point or the attention call of a site; or the reason why there is none."""
    side, _, stage = at[0].partition(".")
    stack, layer = structure.stacks.get(side), at[1]  # type: ignore[call-overload]
    if stack is None:
        return f"a site begins with {' or '.join(f'{known}.' for known in structure.stacks)} in this model"
    if stage not in STAGES:
        return f"there is no stage {stage!r}"
    last = 0 if STAGES[stage].once else stack.n_layers - 1
    if not 0 <= layer <= last:
        return "it has layer 0 alone" if last == 0 else f"it has layers 0 to {last}"
    if stage in stack.missing:
        return str(stack.missing[stage])
    plan = stack.layers[layer]
    derived = plan.attn_out if plan.attention is not None else None
    calls = {**dict.fromkeys(SELF_PARTS, plan.attention), **dict.fromkeys(CROSS_PARTS, plan.cross)}
    once = {EMBED: plan.pre_attn, FINAL: stack.final, LOGITS: LOGITS_TAP}
    found = {**once, POST_ATTN: derived, **plan.hook_points(), **calls}.get(stage)
    return f"layer {layer} has no such stage" if found is None else found


@dataclass(frozen=True, slots=True)
class Write:
    """One site that is written.

    Attributes:
        at: The site.
        edits: What is done to it.
    """

    at: Site
    edits: tuple[Edit, ...]

    @property
    def words(self) -> str:
        """What is written, for messages."""
        return f"{self.at[0]} of layer {self.at[1]}"

    def of(self, value: Tensor, rows: int) -> Tensor:
        """Return an activation with the edits made."""
        if value.shape[0] != rows:
            raise CaptureError(f"{self.words} has {value.shape[0]} rows, the batch {rows}")
        return edited(value, self.edits, self.words)


class Writes:
    """The edits of one forward pass."""

    def __init__(
        self, structure: ModuleStructure, edits: Mapping[Site, tuple[Edit, ...]], kept: frozenset[int] = frozenset()
    ) -> None:
        """Prepare.

        Args:
            structure: Where the stages lie.
            edits: What is done to each site.
            kept: Addresses of memory that no write may touch: the weights'.

        Raises:
            WriteError: A site cannot be written; the message names the reason.
        """
        self._hook_points: list[tuple[HookPoint, Write]] = []
        self._calls: dict[Site, Write] = {}
        self.edits, self._kept, self._n_rows = edits, kept, 0
        self._written: Counter[Site] = Counter()
        for at, changes in edits.items():
            point, write = write_point(structure, at), Write(at, changes)
            if isinstance(point, str):
                raise WriteError(f"{write.words} cannot be written: {point}.")
            if isinstance(point, HookPoint):
                self._hook_points.append((point, write))
            else:
                self._calls[at] = write

    @property
    def of_attention(self) -> bool:
        """Whether anything inside attention is written."""
        return bool(self._calls)

    def start(self, n_rows: int) -> None:
        """Begin a pass of so many rows."""
        self._n_rows = n_rows
        self._written.clear()

    def check(self) -> None:
        """Raise unless every write was made once.

        Raises:
            WriteError: One was not.
        """
        for write in (*(write for _, write in self._hook_points), *self._calls.values()):
            times = self._written[write.at]
            if times != 1:
                raise WriteError(f"{write.words} was written {times} times in one forward pass, not once.")

    # -- in memory -------------------------------------------------------------------------------------------

    def hooks(self) -> Iterator[tuple[HookPoint, partial[None]]]:
        """Yield the hook_points of writes and what is to be done with the tensor that is found there."""
        for point, write in self._hook_points:
            yield point, partial(self._overwrite, point, write)

    def _overwrite(self, point: HookPoint, write: Write, raw: Tensor) -> None:
        self._written[write.at] += 1
        self._require_own_memory(raw, write)
        here = point.turned(raw if raw.dim() > 2 else raw.view(self._n_rows, -1, raw.shape[-1]))
        now = here if point.factor == 1.0 else here * point.factor
        new = write.of(now, self._n_rows)
        if point.factor != 1.0:
            new = torch.where(new == now, here, new / point.factor)
        here.copy_(new)

    def _require_own_memory(self, raw: Tensor, write: Write) -> None:
        shared = raw.untyped_storage().data_ptr() in self._kept
        if shared or any(stride == 0 and size > 1 for stride, size in zip(raw.stride(), raw.shape, strict=True)):
            what = "the weights" if shared else "several of its elements"
            raise WriteError(f"{write.words} cannot be written: its tensor shares memory with {what}.")

    # -- in attention ----------------------------------------------------------------------------------------

    def rewritten(self, plan: AttentionPlan, part: Part, tensor: Tensor) -> Tensor:
        """Return what an attention call uses in place of a query, key or value."""
        write = self._write_of(plan, _PARTS[part])
        if write is None:
            return tensor
        self._written[write.at] += 1
        repeats = 1 if part == "query" else plan.repeats
        now = tensor[:, ::repeats]
        new = write.of(now, self._n_rows)
        if new is now:
            return tensor
        return _laid_out(new if repeats == 1 else new.repeat_interleave(repeats, 1), tensor)

    def attended(self, plan: AttentionPlan, call: AttentionCall) -> AttentionCall:
        """Return an attention call with other probabilities and another output, where these are written."""
        write = self._write_of(plan, _PROBABILITIES)
        if write is not None:
            call = self._with_probabilities(write, call)
        write = self._write_of(plan, _OUTPUT)
        if write is not None:
            self._written[write.at] += 1
            now = call.output.transpose(1, 2)
            new = write.of(now, self._n_rows)
            call = replace(call, output=_laid_out(new, now).transpose(1, 2))
        return call

    def _with_probabilities(self, write: Write, call: AttentionCall) -> AttentionCall:
        """Return the call with other probabilities; the output of a query and head that keeps its own is kept."""
        self._written[write.at] += 1
        now = call.probabilities
        if now is None:
            raise WriteError(f"{write.words} cannot be written: {NO_PROBABILITIES}.")
        value = call.value.repeat_interleave(now.shape[1] // call.value.shape[1], 1)
        output, mixed = call.output.transpose(1, 2), now.to(value.dtype) @ value
        if not torch.allclose(
            mixed, output, rtol=_OFF[value.dtype], atol=_OFF[value.dtype] * float(output.abs().max())
        ):
            raise WriteError(f"{write.words} cannot be written: attention's output is not its probabilities times v.")
        new = write.of(now, self._n_rows)
        differs = (new != now).any(-1, keepdim=True)
        mixed = torch.where(differs, new.to(value.dtype) @ value, output)
        return replace(call, probabilities=new, output=_laid_out(mixed, output).transpose(1, 2))

    def _write_of(self, plan: AttentionPlan, part: int) -> Write | None:
        return self._calls.get((site(plan.side, (CROSS_PARTS if plan.cross else SELF_PARTS)[part]), plan.layer))


def _laid_out(new: Tensor, old: Tensor) -> Tensor:
    """Return a copy with the strides of another tensor: on another layout, a product may round in another way."""
    if any(stride == 0 and size > 1 for stride, size in zip(old.stride(), old.shape, strict=True)):
        return new.clone()
    return torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=old.device).copy_(new)
