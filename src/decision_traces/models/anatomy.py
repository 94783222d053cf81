"""Where a model's inner path lies: layers, attention, residual stages. Found by probing, never by family name.

`find_anatomy` records one tiny forward pass (`dataflow`) and reasons about it:

1. every attention call belongs to the item of the outermost `ModuleList` on its module's path: the layer;
2. inside a layer the residual stream is followed from the output back to the input. Each step is a sum whose
   partial sums nobody else reads; its stream term is the one that all other terms were computed from;
3. `post_attn` is the state of the stream after attention has written, read where a module consumes it. Where
   attention and MLP write in one and the same step (parallel blocks) there is no such state, and it is derived.

What cannot be found is refused with the reason. The plan is believed only after `capture.certificate` has
checked its numbers on another input.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from decision_traces.errors import UnsupportedArchitecture
from decision_traces.models.dataflow import AttentionNode, Dataflow, ModuleCall, record_forward
from decision_traces.models.task import Task, call_inputs

_MAX_STEPS = 8

IDENTITY = "identity"

PostAttn = Literal["stream", "derived", "post_norm"]


@dataclass(frozen=True, slots=True)
class Tap:
    """A place where one tensor of the forward pass can be read.

    Attributes:
        module: Name of the module (as in `named_modules`).
        side: Read the module's "input" or its "output".
        key: Position or keyword of the argument; index into a tuple of outputs; None for a bare output.
        call: Which call of that module in one forward pass (shared modules are called several times).
    """

    module: str
    side: Literal["input", "output"]
    key: int | str | None
    call: int


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """The taps of one layer, and what stands there.

    Attributes:
        pre_attn: The residual stream at the input of the layer.
        post_attn: The stream after attention has written; None where it is derived as pre_attn + attn_write.
        post_mlp: The stream at the output of the layer.
        attn_write: What attention adds to the stream; None where no module returns just that.
        post_attn_kind: See `schema.POST_ATTN_CONVENTIONS`.
        post_attn_norm: Name of the norm that stands between the sum and `post_attn` in a post-LN family.
        post_mlp_norm: Name of the norm that stands between the sum and `post_mlp` in a post-LN family.
    """

    pre_attn: Tap
    post_attn: Tap | None
    post_mlp: Tap
    attn_write: Tap | None
    post_attn_kind: PostAttn
    post_attn_norm: str | None = None
    post_mlp_norm: str | None = None


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The inner path of one model.

    Attributes:
        layers: One plan a layer, in the order of execution.
        attention_modules: Names of the attention modules in call order, one a layer.
        final: Tap of the last hidden state.
        final_norm: Name of the module that leads from the last layer's output to the last hidden state;
            `IDENTITY` where they are the same tensor, None where no single module does it.
        logits_are_unembedded: Whether the logits are just the output embedding of the last hidden state, with
            nothing before (BERT's head has a transform) and nothing after (Gemma 2 caps, Cohere scales).
        n_heads, n_kv_heads, d_head, d_model: Sizes read off the tensors.
        attention_scale: The factor on q·k, one a layer.
        attention_written_out: Whether the model computes attention itself (see `softmax`), and not through
            transformers' attention interface (see `intercept`).
    """

    layers: tuple[LayerPlan, ...]
    attention_modules: tuple[str, ...]
    final: Tap
    final_norm: str | None
    logits_are_unembedded: bool
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    attention_scale: tuple[float, ...]
    attention_written_out: bool = False

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def post_attn_kind(self) -> PostAttn:
        """What `post_attn` is in this model; one word for all layers."""
        return self.layers[0].post_attn_kind


class _Refused(Exception):
    """Carries the reason up to where the model's name is known."""


def find_anatomy(model: nn.Module, vocab_size: int, task: Task = "causal") -> Anatomy:
    """Probe a model and return its anatomy.

    Args:
        model: A transformers model with the head of its task, in eval mode.
        vocab_size: Upper bound (exclusive) of the ids used in the probe.
        task: What the head does.

    Raises:
        UnsupportedArchitecture: Some part of the path could not be found; the message says which and why.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(3, vocab_size - 1), vocab_size, (2, 6), generator=generator).to(device)
    inputs = call_inputs(task, ids, torch.ones_like(ids))
    flow = record_forward(model, inputs)
    written_out = not flow.attention
    if written_out:
        flow = record_forward(model, inputs, written_out=True)
    try:
        return _Finder(model, flow, written_out=written_out).anatomy()
    except _Refused as reason:
        raise UnsupportedArchitecture(
            f"{type(model).__name__} is not understood: {reason}. "
            "Nothing was extracted, because a guess could be wrong."
        ) from None


class _Finder:
    """The reasoning of `find_anatomy` over one record."""

    def __init__(self, model: nn.Module, flow: Dataflow, *, written_out: bool) -> None:
        self.model, self.flow, self.written_out = model, flow, written_out
        self.modules = dict(model.named_modules())
        self.readers = flow.readers()
        self.nth_call = self._number_calls()

    def anatomy(self) -> Anatomy:
        calls = self._layer_calls()
        attention = self.flow.attention
        layers = tuple(self._layer(call, att) for call, att in zip(calls, attention, strict=True))
        self._check_chain(calls)
        kinds = sorted({layer.post_attn_kind for layer in layers})
        if len(kinds) > 1:
            raise _Refused(f"its layers differ in where attention writes ({', '.join(kinds)})")
        sizes = self._sizes(attention)
        final, norm = self._final(self._stream_out(calls[-1])[1])
        return Anatomy(
            layers=layers,
            attention_modules=tuple(a.module for a in attention),
            final=final,
            final_norm=norm,
            logits_are_unembedded=self._unembedded(final),
            **sizes,
            d_model=calls[0].shapes[self._stream_in(calls[0])[1]][-1],
            attention_scale=tuple(a.scaling for a in attention),
            attention_written_out=self.written_out,
        )

    # -- layers ---------------------------------------------------------------------------------------------

    def _number_calls(self) -> dict[int, int]:
        """Number every module call among the calls of the same module."""
        seen: dict[str, int] = {}
        numbers = {}
        for index, call in enumerate(self.flow.module_calls):
            numbers[index] = seen.get(call.name, 0)
            seen[call.name] = numbers[index] + 1
        return numbers

    def _layer_name(self, attention_module: str) -> str:
        parts = attention_module.split(".")
        for end in range(1, len(parts)):
            if isinstance(self.modules[".".join(parts[:end])], nn.ModuleList):
                return ".".join(parts[: end + 1])
        raise _Refused(f"its attention module {attention_module!r} does not lie in a list of layers")

    def _layer_calls(self) -> list[ModuleCall]:
        if not self.flow.attention:
            raise _Refused(
                "its attention goes neither through transformers' attention interface nor as softmax(q·k)·v through "
                "torch's own functions"
            )
        names = [self._layer_name(a.module) for a in self.flow.attention]
        calls = [c for c in self.flow.module_calls if c.name in set(names)]
        if [c.name for c in calls] != names:
            raise _Refused(
                f"it calls {len(calls)} layers but attention {len(names)} times; "
                "layers without attention or with more than one are not supported yet"
            )
        return calls

    def _tap(self, call: ModuleCall, side: Literal["input", "output"], key: int | str | None) -> Tap:
        index = next(i for i, c in enumerate(self.flow.module_calls) if c is call)
        return Tap(call.name, side, key, self.nth_call[index])

    def _stream_in(self, call: ModuleCall) -> tuple[int | str, int]:
        """Return the argument of a layer that carries the residual stream, and its node."""
        width = call.shapes[self._stream_out(call)[1]]
        for key, node in call.inputs.items():
            if call.shapes[node] == width:
                return key, node
        raise _Refused(f"layer {call.name!r} takes no tensor of the shape it returns")

    def _stream_out(self, call: ModuleCall) -> tuple[int | None, int]:
        for key, node in call.outputs.items():
            if len(call.shapes[node]) == 3:
                return key, node
        raise _Refused(f"layer {call.name!r} returns no (batch, position, d_model) tensor")

    def _check_chain(self, calls: list[ModuleCall]) -> None:
        """Every layer must read exactly what the one before it wrote."""
        root = self.flow.root
        for before, after in pairwise(calls):
            if root(self._stream_out(before)[1]) != root(self._stream_in(after)[1]):
                raise _Refused(f"the input of layer {after.name!r} is not the output of {before.name!r}")

    def _sizes(self, attention: list[AttentionNode]) -> dict[str, int]:
        shapes = {(a.query_shape[1::2], a.key_shape[1::2], a.value_shape[1::2]) for a in attention}
        if len(shapes) > 1:
            raise _Refused("its layers differ in the number or size of attention heads, which is not supported yet")
        (query, key, value) = shapes.pop()
        if not query[1] == key[1] == value[1] or key[0] != value[0]:
            raise _Refused(f"q, k and v heads differ in size ({query[1]}, {key[1]}, {value[1]}), not supported yet")
        return {"n_heads": query[0], "n_kv_heads": key[0], "d_head": query[1]}

    # -- residual stages ------------------------------------------------------------------------------------

    def _layer(self, call: ModuleCall, attention: AttentionNode) -> LayerPlan:
        in_key, in_node = self._stream_in(call)
        out_key, out_node = self._stream_out(call)
        source, result = self.flow.root(in_node), self.flow.root(out_node)
        inside = list(self._calls_inside(call))
        last_norm: str | None = None
        for state, writes, norm in self._steps(source, result, inside):
            term = self._attention_term(state, writes, attention)
            if term is not None:
                parallel = len(writes) > 1
                write = self._output_of(inside, term)
                if (parallel or norm) and write is None:
                    raise _Refused("no module returns what attention adds to the residual stream")
                return LayerPlan(
                    pre_attn=self._tap(call, "input", in_key),
                    post_attn=None if parallel else self._reader_of(inside, result),
                    post_mlp=self._tap(call, "output", out_key),
                    attn_write=write,
                    post_attn_kind="derived" if parallel else "post_norm" if norm else "stream",
                    post_attn_norm=norm,
                    post_mlp_norm=last_norm,
                )
            last_norm = last_norm or norm
            result = state
        raise _Refused(f"in layer {call.name!r} attention does not write into the residual stream")

    def _calls_inside(self, layer: ModuleCall) -> Iterator[ModuleCall]:
        start = next(i for i, c in enumerate(self.flow.module_calls) if c is layer)
        for call in self.flow.module_calls[start + 1 :]:
            if not call.name.startswith(layer.name + "."):
                return
            yield call

    def _steps(self, source: int, result: int, inside: list[ModuleCall]) -> Iterator[tuple[int, list[int], str | None]]:
        """Walk the stream from a layer's output to its input: (earlier state, what was added to it, norm after)."""
        for _ in range(_MAX_STEPS):
            if result == source:
                return
            total, norm = self._sum_behind(result, inside)
            terms = self._terms(total, source)
            stream = self._stream_term(terms, source)
            yield stream, [t for t in terms if t != stream], norm
            result = stream
        raise _Refused("the residual stream has more steps in one layer than expected")

    def _sum_behind(self, state: int, inside: list[ModuleCall]) -> tuple[int, str | None]:
        """Return the sum that a state is, or that a module (the norm of a post-LN family, named) made it from."""
        if self.flow.nodes[state].kind == "add":
            return state, None
        for call in inside:
            outputs = {self.flow.root(n) for n in call.outputs.values()}
            inputs = {self.flow.root(n) for n in call.inputs.values()}
            if state in outputs and len(inputs) == 1:
                (total,) = inputs
                if self.flow.nodes[total].kind == "add":
                    return total, call.name
        raise _Refused("its residual stream is not a chain of sums (or of normed sums)")

    def _terms(self, total: int, source: int) -> list[int]:
        """Flatten a sum into its terms; a partial sum that something else reads is a term of its own."""
        terms: list[int] = []
        todo = [self.flow.root(p) for p in self.flow.nodes[total].parents]
        while todo:
            term = todo.pop()
            partial = self.flow.nodes[term].kind == "add" and self.readers.get(term, 0) == 1
            if partial and term != source:
                todo += [self.flow.root(p) for p in self.flow.nodes[term].parents]
            else:
                terms.append(term)
        return terms

    def _stream_term(self, terms: list[int], source: int) -> int:
        behind = {t: self.flow.ancestors(t, stop=source) for t in terms}
        streams = [t for t in terms if all(t in behind[other] for other in terms)]
        if len(streams) != 1:
            raise _Refused("a sum in its layers has no term that the others were computed from")
        return streams[0]

    def _attention_term(self, state: int, writes: list[int], attention: AttentionNode) -> int | None:
        output = self.flow.root(attention.output)
        found = [w for w in writes if output in self.flow.ancestors(w, stop=state)]
        if len(found) > 1:
            raise _Refused("attention writes into the residual stream more than once a layer")
        return found[0] if found else None

    def _reader_of(self, inside: list[ModuleCall], state: int) -> Tap:
        for call in inside:
            for key, node in call.inputs.items():
                if self.flow.root(node) == state:
                    return self._tap(call, "input", key)
        raise _Refused("no module reads the residual stream after attention has written")

    def _output_of(self, inside: list[ModuleCall], term: int) -> Tap | None:
        for call in inside:
            for key, node in call.outputs.items():
                if self.flow.root(node) == term:
                    return self._tap(call, "output", key)
        return None

    # -- the end --------------------------------------------------------------------------------------------

    def _final(self, last: int) -> tuple[Tap, str | None]:
        layer = self._layer_name(self.flow.attention[-1].module)
        around = [c for c in self.flow.module_calls if c.name and layer.startswith(f"{c.name}.")]
        if not around:
            raise _Refused("no module around its layers returns the last hidden state")
        call = around[0]
        key, node = self._stream_out(call)
        if call.shapes[node][-1] != self._width(last):
            raise _Refused("its last hidden state is not as wide as its residual stream")
        before, after = self.flow.root(last), self.flow.root(node)
        if before == after:
            return self._tap(call, "output", key), IDENTITY
        norms = [
            c.name
            for c in self.flow.module_calls
            if before in map(self.flow.root, c.inputs.values()) and after in map(self.flow.root, c.outputs.values())
        ]
        return self._tap(call, "output", key), norms[-1] if norms else None

    def _unembedded(self, final: Tap) -> bool:
        head = next((n for n, m in self.modules.items() if m is self.model.get_output_embeddings()), None)  # type: ignore[operator]
        calls = {c.name: c for c in self.flow.module_calls}
        if head not in calls:
            return False
        state = self._stream_out(calls[final.module])[1]
        reads = {self.flow.root(n) for n in calls[head].inputs.values()}
        writes = {self.flow.root(n) for n in calls[head].outputs.values()}
        logits = {self.flow.root(n) for n in calls[""].outputs.values()}
        return self.flow.root(state) in reads and bool(writes & logits)

    def _width(self, node: int) -> int:
        return next(c.shapes[node][-1] for c in self.flow.module_calls if node in c.shapes)
