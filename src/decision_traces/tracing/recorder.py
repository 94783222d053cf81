"""The recorder: hooks and a watcher that live for one forward pass and copy what passes into the buffers.

A hook returns nothing and keeps no reference, so the model computes what it would have computed, and a tensor
that is overwritten later in the pass has been copied before. After the pass every site must have fired exactly
once; anything else is an error, never a row of zeros.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Final

from torch import Tensor, nn

from decision_traces.errors import CaptureError
from decision_traces.format.arrays import Side, site, stage_of
from decision_traces.format.stages import (
    CROSS_PARTS,
    EMBED,
    FINAL,
    LOGITS,
    POST_ATTN,
    SELF_PARTS,
    STAGES,
)
from decision_traces.model.discovery.intercept import AttentionCall, Watcher, watch_attention
from decision_traces.model.discovery.softmax import watch_softmax
from decision_traces.model.structure import Anatomy, AttentionPlan, LayerPlan, Stack, Tap
from decision_traces.tracing.buffers import BatchBuffers

Handler = Callable[[Tensor], None]

_WATCHED: Final = frozenset({*SELF_PARTS, *CROSS_PARTS})


class Recorder:
    """Copies the sites that its buffers hold during `recording(...)`."""

    def __init__(
        self, model: nn.Module, anatomy: Anatomy, buffers: BatchBuffers, watcher: Watcher | None = None
    ) -> None:
        """Prepare to record.

        Args:
            model: The model.
            anatomy: Where its inner path lies.
            buffers: Where the copies go; what they hold decides what is recorded.
            watcher: Sees every attention call besides; what it returns takes the place of the call's output.
        """
        self.anatomy, self.buffers, self._watcher = anatomy, buffers, watcher
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._n_rows = 0
        self._fired: Counter[tuple[str, int]] = Counter()
        self._attended = 0
        self._streams: dict[Side, Tensor] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record one forward pass of the rows that the buffers were started with.

        Raises:
            CaptureError: After the pass, if a site did not fire exactly once.
        """
        self._n_rows, self._attended = self.buffers.n_rows, 0
        self._fired.clear()
        with ExitStack() as stack:
            for remove in self._attach():
                stack.callback(remove)
            if self._watcher or any(stage_of(name) in _WATCHED for name in self.buffers.names):
                for watching in self._watching():
                    stack.enter_context(watching)
            stack.callback(self._streams.clear)
            yield
        self._check_fired()

    # -- residual stream ------------------------------------------------------------------------------------

    def _taps(self) -> Iterator[tuple[Tap, Handler]]:
        for side, stack in self.anatomy.stacks.items():
            if site(side, EMBED) in self.buffers.names:
                yield stack.layers[0].pre_attn, partial(self._put, site(side, EMBED), 0)
            for layer, plan in enumerate(stack.layers):
                yield from self._layer_taps(side, layer, plan)
            if site(side, FINAL) in self.buffers.names:
                yield stack.final, partial(self._put, site(side, FINAL), 0)
            if side == "dec" or len(self.anatomy.stacks) == 1:
                yield from self._logits_tap(side)

    def _layer_taps(self, side: Side, layer: int, plan: LayerPlan) -> Iterator[tuple[Tap, Handler]]:
        if (site(side, POST_ATTN), layer) in self.buffers.sites:
            yield from self._post_attn_taps(side, layer, plan)
        for stage, tap in plan.taps().items():
            if stage != POST_ATTN and (site(side, stage), layer) in self.buffers.sites:
                yield tap, partial(self._put, site(side, stage), layer)

    def _post_attn_taps(self, side: Side, layer: int, plan: LayerPlan) -> Iterator[tuple[Tap, Handler]]:
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

    def _logits_tap(self, side: Side) -> Iterator[tuple[Tap, Handler]]:
        if site(side, LOGITS) in self.buffers.names:
            yield Tap("", "output", "logits", 0), partial(self._put, site(side, LOGITS), 0)

    def _attach(self) -> Iterator[Callable[[], None]]:
        by_place: dict[tuple[str, str], list[tuple[Tap, Handler]]] = {}
        for tap, handler in self._taps():
            by_place.setdefault((tap.module, tap.side), []).append((tap, handler))
        for (name, side), taps in by_place.items():
            hook = _Hook(taps)
            module = self._modules[name]
            if side == "input":
                yield module.register_forward_pre_hook(hook.on_input, with_kwargs=True).remove
            else:
                yield module.register_forward_hook(hook.on_output).remove

    # -- attention ------------------------------------------------------------------------------------------

    def _watching(self) -> Iterator[AbstractContextManager[None]]:
        if any(not call.written_out for call in self.anatomy.calls):
            yield watch_attention(self._on_attention)
        if self.anatomy.written_out:
            yield watch_softmax([self._modules[name] for name in self.anatomy.written_out], self._on_attention)

    def _on_attention(self, call: AttentionCall) -> Tensor | None:
        at, plans = self._attended, self.anatomy.calls
        self._attended += 1
        if at >= len(plans) or self._modules[plans[at].module] is not call.module:
            raise CaptureError("the model called attention in another order than when it was probed")
        if plans[at].layer >= 0:
            self._keep(plans[at], call)
        return self._watcher(call) if self._watcher else None

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
                raise CaptureError(
                    f"layer {plan.layer} gave no attention probabilities. They exist only under eager attention; "
                    "this model does not seem to use it when asked to."
                )
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

    def __init__(self, taps: list[tuple[Tap, Handler]]) -> None:
        self._taps, self._calls = taps, 0

    def on_input(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hand the tapped arguments on."""
        for tap, handler in self._due():
            handler(_adapted(tap, kwargs[tap.key] if isinstance(tap.key, str) else args[tap.key or 0]))

    def on_output(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Hand the tapped results on."""
        for tap, handler in self._due():
            if isinstance(tap.key, int):  # into a tuple, or a ModelOutput, which is a dict with an order
                output_of = tuple(output.values()) if isinstance(output, dict) else output
                handler(_adapted(tap, output_of[tap.key]))
            else:
                handler(_adapted(tap, output[tap.key] if isinstance(tap.key, str) else output))

    def _due(self) -> list[tuple[Tap, Handler]]:
        due = [(tap, handler) for tap, handler in self._taps if tap.call == self._calls]
        self._calls += 1
        return due


def _adapted(tap: Tap, value: Tensor) -> Tensor:
    """Return a tapped tensor as (batch, position, ...), with what the model does to it next."""
    turned = value if tap.axes == "bpd" else value.transpose(0, 1) if tap.axes == "pbd" else value.transpose(1, 2)
    scaled = turned if tap.factor == 1.0 else turned * tap.factor
    if tap.made is None:
        return scaled
    return scaled.float().softmax(-1) if tap.made == "softmax" else scaled.float().sigmoid()


def sites_of_stack(side: Side, stack: Stack, stages: Sequence[str]) -> list[tuple[str, int]]:
    """Return the sites of some stages of a stack, layer by layer, without those it does not have."""
    return [
        (site(side, stage), layer)
        for stage in stages
        if stage not in stack.missing
        for layer in ((0,) if STAGES[stage].once else stack.layers_with(stage))
    ]
