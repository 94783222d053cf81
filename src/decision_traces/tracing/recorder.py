"""The recorder: hooks and a watcher that live for one forward pass, put edits into it and copy what passes.

A reading hook returns nothing and keeps no reference, so the model computes what it would have computed, and a tensor
that is overwritten later in the pass has been copied before. Where a site is both written and read, what was written is
read. After the pass every site must have fired exactly once; anything else is an error, never a row of zeros.
"""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Final, Protocol, runtime_checkable

from torch import Tensor, nn

from decision_traces.errors import CaptureError
from decision_traces.format.arrays import Side, Site, site, stage_of
from decision_traces.format.stages import (
    CROSS_PARTS,
    EMBED,
    FINAL,
    LOGITS,
    POST_ATTN,
    SELF_PARTS,
    STAGES,
)
from decision_traces.model.discovery.intercept import AttentionCall, Part, Watcher, watch_attention
from decision_traces.model.discovery.softmax import watch_softmax
from decision_traces.model.discovery.writing import NO_PROBABILITIES
from decision_traces.model.structure import AttentionPlan, HookPoint, LayerPlan, ModuleStructure, Stack
from decision_traces.tracing.writes import LOGITS_TAP, Writes

Handler = Callable[[Tensor], None]
Hook = tuple[HookPoint, Handler]
"""A place, and what gets the tensor that is found there; for reading only."""

_WATCHED: Final = frozenset({*SELF_PARTS, *CROSS_PARTS})


@runtime_checkable
class Reader(Protocol):
    """Where the activations of a pass go."""

    @property
    def sites(self) -> Collection[Site]:
        """The sites that are read."""

    @property
    def names(self) -> frozenset[str]:
        """Their names, without layers."""

    @property
    def n_rows(self) -> int:
        """Rows of the pass."""

    def put(self, name: str, layer: int, value: Tensor) -> None:
        """Take a copy of one activation: (rows, positions, width), or (rows, heads, positions, d_head or keys)."""


class Recorder:
    """Hooks a model's stages during `recording(...)`: writes, then reads."""

    def __init__(
        self,
        model: nn.Module,
        structure: ModuleStructure,
        buffers: Reader,
        watcher: Watcher | None = None,
        *,
        writes: Writes | None = None,
        beside: Iterable[Hook] = (),
    ) -> None:
        """Prepare to record.

        Args:
            model: The model.
            structure: Where its inner path lies.
            buffers: Where the copies go; what they hold decides what is recorded.
            watcher: Sees every attention call besides; what it returns takes the place of the call's output.
            writes: The edits of the pass.
            beside: Other places to read.
        """
        self.structure, self.buffers, self._watcher = structure, buffers, watcher
        self._writes, self._beside = writes or Writes(structure, {}), tuple(beside)
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._n_rows = 0
        self._fired: Counter[tuple[str, int]] = Counter()
        self._attended = 0
        self._streams: dict[Side, Tensor] = {}
        self._thread = threading.get_ident()
        self.paused = False
        """Whether another pass is made in between, which is none of this recorder's business."""

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record one forward pass of the rows that the buffers were started with.

        Raises:
            CaptureError: After the pass, if a site did not fire exactly once.
        """
        self._n_rows, self._attended, self._thread = self.buffers.n_rows, 0, threading.get_ident()
        self._fired.clear()
        self._writes.start(self._n_rows)
        with ExitStack() as stack:
            for remove in self._attach():
                stack.callback(remove)
            seen = any(stage_of(name) in _WATCHED for name in self.buffers.names)
            if self._watcher or seen or self._writes.of_attention:
                for watching in self._watching():
                    stack.enter_context(watching)
            stack.callback(self._streams.clear)
            yield
        self._writes.check()
        self._check_fired()

    @property
    def idle(self) -> bool:
        """Whether what runs now is none of its business: another pass in between, or another thread's."""
        return self.paused or threading.get_ident() != self._thread

    # -- residual stream ------------------------------------------------------------------------------------

    def _hook_points(self) -> Iterator[Hook]:
        for side, stack in self.structure.stacks.items():
            if site(side, EMBED) in self.buffers.names:
                yield stack.layers[0].pre_attn, partial(self._put, site(side, EMBED), 0)
            for layer, plan in enumerate(stack.layers):
                yield from self._layer_points(side, layer, plan)
            if site(side, FINAL) in self.buffers.names:
                yield stack.final, partial(self._put, site(side, FINAL), 0)
            if side == "dec" or len(self.structure.stacks) == 1:
                yield from self._logits_point(side)

    def _layer_points(self, side: Side, layer: int, plan: LayerPlan) -> Iterator[Hook]:
        if (site(side, POST_ATTN), layer) in self.buffers.sites:
            yield from self._post_attn_points(side, layer, plan)
        for stage, point in plan.hook_points().items():
            if stage != POST_ATTN and (site(side, stage), layer) in self.buffers.sites:
                yield point, partial(self._put, site(side, stage), layer)

    def _post_attn_points(self, side: Side, layer: int, plan: LayerPlan) -> Iterator[Hook]:
        name = site(side, POST_ATTN)
        if plan.post_attn is not None:
            yield plan.post_attn, partial(self._put, name, layer)
        elif plan.attn_out is not None:
            yield plan.pre_attn, partial(self._hold, side)
            yield plan.attn_out, lambda t: self._put(name, layer, self._held(side) + t)

    def _hold(self, side: Side, stream: Tensor) -> None:
        self._streams[side] = stream

    def _held(self, side: Side) -> Tensor:
        if side not in self._streams:
            raise CaptureError("attention wrote before its layer began")
        return self._streams[side]

    def _logits_point(self, side: Side) -> Iterator[Hook]:
        if site(side, LOGITS) in self.buffers.names:
            yield LOGITS_TAP, partial(self._put, site(side, LOGITS), 0)

    def _attach(self) -> Iterator[Callable[[], None]]:
        by_place: dict[tuple[str, str], list[Hook]] = {}
        reads = ((point, partial(_read, point, handler)) for point, handler in (*self._hook_points(), *self._beside))
        for point, handler in (*self._writes.hooks(), *reads):
            by_place.setdefault((point.module, point.side), []).append((point, handler))
        for (name, side), points in by_place.items():
            hook = _Hook(self, points)
            module = self._modules[name]
            if side == "input":
                yield module.register_forward_pre_hook(hook.on_input, with_kwargs=True).remove
            else:
                yield module.register_forward_hook(hook.on_output).remove

    # -- attention ------------------------------------------------------------------------------------------

    def _watching(self) -> Iterator[AbstractContextManager[None]]:
        rewrite = self._rewrite if self._writes.of_attention else None
        if any(not call.written_out for call in self.structure.calls):
            yield watch_attention(self._on_attention, rewrite)
        if self.structure.written_out:
            yield watch_softmax(
                [self._modules[name] for name in self.structure.written_out], self._on_attention, rewrite
            )

    def _rewrite(self, _module: nn.Module, part: Part, tensor: Tensor) -> Tensor:
        """Return what the next attention call uses as its query, key or value."""
        if self.paused or self._attended >= len(self.structure.calls):
            return tensor
        return self._writes.rewritten(self.structure.calls[self._attended], part, tensor)

    def _on_attention(self, call: AttentionCall) -> Tensor | None:
        if self.paused:
            return None
        at, plans = self._attended, self.structure.calls
        self._attended += 1
        if at >= len(plans) or self._modules[plans[at].module] is not call.module:
            raise CaptureError("the model called attention in another order than when it was probed")
        output = call.output
        if plans[at].layer >= 0:
            call = self._writes.attended(plans[at], call)
            self._keep(plans[at], call)
        replaced = self._watcher(call) if self._watcher else None
        return call.output if replaced is None and call.output is not output else replaced

    def _keep(self, plan: AttentionPlan, call: AttentionCall) -> None:
        values = (
            call.query,
            call.key[:, :: plan.repeats],
            call.value[:, :: plan.repeats],
            call.probabilities,
            call.output.transpose(1, 2),
        )
        for stage, value in zip(CROSS_PARTS if plan.cross else SELF_PARTS, values, strict=True):
            name = site(plan.side, stage)
            if (name, plan.layer) not in self.buffers.sites:
                continue
            if value is None:
                raise CaptureError(f"{name} of layer {plan.layer} cannot be read: {NO_PROBABILITIES}.")
            self._put(name, plan.layer, value)

    # -- bookkeeping ----------------------------------------------------------------------------------------

    def _put(self, name: str, layer: int, value: Tensor) -> None:
        self._fired[(name, layer)] += 1
        if value.dim() == 2:  # flattened to (batch * position, d_model), as OPT does before its MLP
            value = value.view(self._n_rows, -1, value.shape[-1])
        if value.shape[0] != self._n_rows:
            raise CaptureError(f"{name} of layer {layer} has {value.shape[0]} rows, the batch {self._n_rows}")
        self.buffers.put(name, layer, value)

    def _check_fired(self) -> None:
        for name, layer in self.buffers.sites:
            times = self._fired[(name, layer)]
            if times != 1:
                raise CaptureError(f"{name} of layer {layer} fired {times} times in one forward pass, not once")


class _Hook:
    """The hooks of one module, which may be called several times in one pass."""

    def __init__(self, recorder: Recorder, points: list[Hook]) -> None:
        self._recorder, self._points, self._calls = recorder, points, 0

    def on_input(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hand the tapped arguments on."""
        for point, handler in self._due():
            handler(kwargs[point.key] if isinstance(point.key, str) else args[point.key or 0])

    def on_output(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Hand the tapped results on."""
        for point, handler in self._due():
            if isinstance(point.key, int):  # into a tuple, or a ModelOutput, which is a dict with an order
                output_of = tuple(output.values()) if isinstance(output, dict) else output
                handler(output_of[point.key])
            else:
                handler(output[point.key] if isinstance(point.key, str) else output)

    def _due(self) -> list[Hook]:
        if self._recorder.idle:
            return []
        due = [(point, handler) for point, handler in self._points if point.call == self._calls]
        self._calls += 1
        return due


def _read(point: HookPoint, handler: Handler, value: Tensor) -> None:
    """Hand a tapped tensor on as (batch, position, ...), with what the model does to it next."""
    scaled = point.turned(value) if point.factor == 1.0 else point.turned(value) * point.factor
    if point.made is not None:
        scaled = scaled.float().softmax(-1) if point.made == "softmax" else scaled.float().sigmoid()
    handler(scaled)


def sites_of_stack(side: Side, stack: Stack, stages: Sequence[str]) -> list[tuple[str, int]]:
    """Return the sites of some stages of a stack, layer by layer, without those it does not have."""
    return [
        (site(side, stage), layer)
        for stage in stages
        if stage not in stack.missing
        for layer in ((0,) if STAGES[stage].once else stack.layers_with(stage))
    ]
