"""The recorder: hooks and a watcher that live for one forward pass and copy what passes into the buffers.

A hook returns nothing and keeps no reference, so the model computes what it would have computed, and a tensor
that is overwritten later in the pass has been copied before. After the pass every site must have fired exactly
once a layer; anything else is an error, never a row of zeros.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from decision_traces.capture.buffers import BlockBuffers
from decision_traces.errors import CaptureError
from decision_traces.models.anatomy import Anatomy, Tap
from decision_traces.models.intercept import AttentionCall, Watcher, watch_attention
from decision_traces.models.softmax import watch_softmax
from decision_traces.schema import ATTN, ATTN_OUT, EMBED, FINAL, POST_ATTN, POST_MLP, K, Q, V

Handler = Callable[[Tensor], None]


class Recorder:
    """Copies the sites that its buffers hold during `recording(...)`."""

    def __init__(
        self, model: nn.Module, anatomy: Anatomy, buffers: BlockBuffers, watcher: Watcher | None = None
    ) -> None:
        """Prepare to record.

        Args:
            model: The model.
            anatomy: Where its inner path lies.
            buffers: Where the copies go; what they hold decides what is recorded.
            watcher: Sees every attention call besides; what it returns takes the place of the call's output.
        """
        self.anatomy, self.buffers, self._watcher = anatomy, buffers, watcher
        self._modules = dict(model.named_modules())
        self._rows: Sequence[int] = ()
        self._lengths: Sequence[int] = ()
        self._fired: Counter[tuple[str, int]] = Counter()
        self._stream: Tensor | None = None

    @contextmanager
    def recording(self, rows: Sequence[int], lengths: Sequence[int]) -> Iterator[None]:
        """Record one forward pass of the examples at these rows of the block.

        Raises:
            CaptureError: After the pass, if a site did not fire exactly once a layer.
        """
        self._rows, self._lengths = rows, lengths
        self._fired.clear()
        with ExitStack() as stack:
            for remove in self._attach():
                stack.callback(remove)
            if self._watcher or {Q, K, V, ATTN} & self.buffers.sites.keys():
                stack.enter_context(self._watching())
            stack.callback(self._release)
            yield
        self._check_fired()

    # -- residual stream ------------------------------------------------------------------------------------

    def _taps(self) -> Iterator[tuple[Tap, Handler]]:
        sites, layers = self.buffers.sites, self.anatomy.layers
        if EMBED in sites:
            yield layers[0].pre_attn, partial(self._put, EMBED, 0)
        for layer, plan in enumerate(layers):
            if ATTN_OUT in sites and plan.attn_write is not None:
                yield plan.attn_write, partial(self._put, ATTN_OUT, layer)
            if POST_ATTN in sites:
                yield from self._post_attn_taps(layer, plan.pre_attn, plan.post_attn, plan.attn_write)
            if POST_MLP in sites:
                yield plan.post_mlp, partial(self._put, POST_MLP, layer)
        if FINAL in sites:
            yield self.anatomy.final, partial(self._put, FINAL, 0)

    def _post_attn_taps(
        self, layer: int, before: Tap, after: Tap | None, write: Tap | None
    ) -> Iterator[tuple[Tap, Handler]]:
        if after is not None:
            yield after, partial(self._put, POST_ATTN, layer)
        elif write is not None:
            yield before, self._hold
            yield write, lambda t: self._put(POST_ATTN, layer, self._held() + t)

    def _hold(self, stream: Tensor) -> None:
        self._stream = stream

    def _held(self) -> Tensor:
        if self._stream is None:
            raise CaptureError("attention wrote before its layer began")
        return self._stream

    def _release(self) -> None:
        self._stream = None

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

    def _watching(self) -> AbstractContextManager[None]:
        if not self.anatomy.attention_written_out:
            return watch_attention(self._on_attention)
        return watch_softmax([self._modules[name] for name in self.anatomy.attention_modules], self._on_attention)

    def _on_attention(self, call: AttentionCall) -> Tensor | None:
        layer = self._fired[("attention", 0)]
        self._fired[("attention", 0)] += 1
        if layer >= self.anatomy.n_layers or self._modules[self.anatomy.attention_modules[layer]] is not call.module:
            raise CaptureError("the model called attention in another order than when it was probed")
        for site, value in ((Q, call.query), (K, call.key), (V, call.value), (ATTN, call.probabilities)):
            if site in self.buffers.sites:
                if value is None:
                    raise CaptureError(
                        f"layer {layer} gave no attention probabilities. They exist only under eager attention; "
                        "this model does not seem to use it when asked to."
                    )
                self._put(site, layer, value)
        return self._watcher(call) if self._watcher else None

    # -- bookkeeping ----------------------------------------------------------------------------------------

    def _put(self, site: str, layer: int, value: Tensor) -> None:
        self._fired[(site, layer)] += 1
        if value.dim() == 2:  # flattened to (batch * position, d_model), as OPT does before its MLP
            value = value.view(len(self._rows), -1, value.shape[-1])
        self.buffers.put(site, layer, self._rows, self._lengths, value)

    def _check_fired(self) -> None:
        for site, buffer in self.buffers.sites.items():
            for layer in range(buffer.data.shape[0]):
                times = self._fired[(site, layer)]
                if times != 1:
                    raise CaptureError(f"{site} of layer {layer} fired {times} times in one forward pass, not once")


class _Hook:
    """The hooks of one module, which may be called several times in one pass."""

    def __init__(self, taps: list[tuple[Tap, Handler]]) -> None:
        self._taps, self._calls = taps, 0

    def on_input(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hand the tapped arguments on."""
        for tap, handler in self._due():
            handler(kwargs[tap.key] if isinstance(tap.key, str) else args[tap.key or 0])

    def on_output(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Hand the tapped results on."""
        for tap, handler in self._due():
            if isinstance(tap.key, int):  # into a tuple, or a ModelOutput, which is a dict with an order
                handler((tuple(output.values()) if isinstance(output, dict) else output)[tap.key])
            else:
                handler(output)

    def _due(self) -> list[tuple[Tap, Handler]]:
        due = [(tap, handler) for tap, handler in self._taps if tap.call == self._calls]
        self._calls += 1
        return due
