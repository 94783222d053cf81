"""Where a stage can be written, so that everything that reads it reads what was written.

A write goes into the memory of the tensor that a hook gets. It reaches what reads that memory afterwards, and copies
made afterwards; not what has read it before, nor a copy that was made before. The record of a forward pass tells which
is which, so that for every stage a hook point is chosen that reaches all readers, or the reason given why none does.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, Final

import torch
from torch import Tensor, nn

from decision_traces.format.arrays import Side
from decision_traces.format.stages import CROSS_PARTS, EMBED, FINAL, POST_ATTN, SELF_PARTS
from decision_traces.model.discovery.dataflow import AttentionNode, Dataflow
from decision_traces.model.discovery.intercept import AttentionCall, watch_attention
from decision_traces.model.discovery.layers import LayerFinder
from decision_traces.model.discovery.softmax import watch_softmax
from decision_traces.model.discovery.stream import Stream
from decision_traces.model.structure import AttentionPlan, HookPoint, Stack, WritePoint

DERIVED: Final = (
    "attention and MLP write in one step (a parallel block): the model has no state between them; write pre_attn, "
    "attn_out or mlp_out"
)
MADE: Final = "it is computed for reading alone, from what the model goes on with"
UNREAD: Final = "nothing that the model computes afterwards reads it"
NO_PROBABILITIES: Final = (
    "its attention gave no probabilities, which exist only under eager attention; this model does not seem to use it "
    "when asked to"
)
_TOO_EARLY: Final = "a part of the model reads it before any module gives or takes it"
_OTHER_TERMS: Final = (
    "the scores of its attention have terms beside q·k that depend on the text; a write would not reach them"
)


def with_write_points(
    model: nn.Module,
    inputs: Mapping[str, Any],
    layers: LayerFinder,
    stacks: Mapping[Side, Stack],
    calls: Sequence[AttentionPlan],
) -> dict[Side, Stack]:
    """Return stacks with the hook points of writes where they are not those of reads.

    Args:
        model: The model.
        inputs: The arguments of its forward that it was recorded with.
        layers: The record.
        stacks: The stacks.
        calls: All attention calls in order.
    """
    flow = layers.flow
    writing = Writing(flow, layers.lengths, list(_unread(model, inputs, layers, stacks, calls)))
    attention = {id(plan): node for plan, node in zip(calls, flow.attention, strict=True)}
    return {side: writing.of_stack(stack, attention) for side, stack in stacks.items()}


def _unread(
    model: nn.Module,
    inputs: Mapping[str, Any],
    layers: LayerFinder,
    stacks: Mapping[Side, Stack],
    calls: Sequence[AttentionPlan],
) -> Iterator[int]:
    """Yield the numbers of calls that reach nothing; it is tried where a stream has more positions than tokens."""
    stream = Stream(layers.flow, layers.lengths)
    for side, stack in stacks.items():
        if stream.shape_of(stack.layers[0].post_mlp)["p"] > layers.n_positions(side, two=len(stacks) > 1):
            own = (number for number, plan in enumerate(calls) if plan.side == side)
            yield from (number for number in own if not _arrives(model, inputs, number))


def _arrives(model: nn.Module, inputs: Mapping[str, Any], number: int) -> bool:
    """Return whether the output of an attention call reaches what the model returns, by making it not a number.

    The record tells that of tensors, not of positions: of ProphetNet's last layer, the logits read later streams alone.

    Args:
        model: The model.
        inputs: The arguments of its forward.
        number: Which call of the pass.
    """
    seen = count()

    def spoil(call: AttentionCall) -> Tensor | None:
        return torch.full_like(call.output, torch.nan) if next(seen) == number else None

    with torch.no_grad(), watch_attention(spoil), watch_softmax(tuple(model.modules()), spoil):
        returned = model(**inputs)
    return any(isinstance(t, Tensor) and bool(t.isnan().any()) for t in returned.values())


class Writing:
    """Finds the hook points of writes in a record."""

    def __init__(self, flow: Dataflow, lengths: Mapping[str, int], unread: Collection[int] = ()) -> None:
        """Prepare.

        Args:
            flow: The record.
            lengths: Positions of each argument of the forward pass.
            unread: Numbers of the attention calls whose output reaches nothing.
        """
        self._unread = {id(flow.attention[number]) for number in unread}
        self._flow, self._stream = flow, Stream(flow, lengths)
        self._calls: dict[str, list[int]] = {}
        self._holders: dict[int, list[tuple[int, HookPoint, int]]] = {}
        for number, call in enumerate(flow.module_calls):
            self._calls.setdefault(call.name, []).append(number)
            for key, node in call.inputs.items():
                self._hold(node, call.began, self._stream.point(call, "input", key))
            for out, node in call.outputs.items():
                self._hold(node, call.ended, self._stream.point(call, "output", out))
        self._readers: dict[int, list[tuple[int, int]]] = {}
        for number, made in enumerate(flow.nodes):
            if made.kind != "alias":
                for parent in made.parents:
                    self._readers.setdefault(flow.root(parent), []).append((number, parent))
        self._used: set[int] = set()  # for what the model returns
        for node in flow.module_calls[0].outputs.values():
            self._readers.setdefault(flow.root(node), []).append((len(flow.nodes), node))
            self._used |= flow.ancestors(node, stop=-1)

    def _hold(self, node: int, time: int, point: HookPoint) -> None:
        self._holders.setdefault(self._flow.root(node), []).append((time, point, node))

    def of_stack(self, stack: Stack, attention: Mapping[int, AttentionNode]) -> Stack:
        """Return a stack with the hook points of writes where they are not those of reads.

        Args:
            stack: The stack.
            attention: The record of its attention calls, by `id` of their plan.
        """
        found: dict[tuple[str, int], WritePoint] = {}
        for stage, layer, read_at in _hook_points(stack):
            write_at = self._point(read_at)
            if write_at != read_at:
                found[stage, layer] = write_at
        for layer, plan in enumerate(stack.layers):
            if plan.attention is not None and plan.post_attn is None:
                found[POST_ATTN, layer] = DERIVED
            for call, stages in ((plan.attention, SELF_PARTS), (plan.cross, CROSS_PARTS)):
                if call is not None:
                    reasons = self._refused(call, attention[id(call)], plan.pre_attn)
                    found |= {(stage, layer): why for stage, why in zip(stages, reasons, strict=True) if why}
        return replace(stack, write_points=found)

    # -- the stream, and what is written into it -------------------------------------------------------------

    def _point(self, point: HookPoint) -> WritePoint:
        """Return where to write what a hook point reads: there, or else the first point that reaches all readers."""
        if point.made is not None:
            return MADE
        time, node = self._time_and_node(point)
        root = self._flow.root(node)
        readers = self._readers.get(root, [])
        if root not in self._used:
            return UNREAD
        holders = sorted(self._holders[root], key=lambda holder: holder[0])
        for began, holder, at in [(time, point, node), *holders]:
            if all(self._reached(number, parent, at, began) for number, parent in readers):
                return replace(holder, factor=point.factor)
        return _TOO_EARLY

    def _time_and_node(self, point: HookPoint) -> tuple[int, int]:
        call = self._flow.module_calls[self._calls[point.module][point.call]]
        if point.side == "input":
            return call.began, call.inputs[point.key]  # type: ignore[index]
        return call.ended, call.outputs[point.key]  # type: ignore[index]

    def _memory(self, node: int) -> int:
        """Return the node whose memory this one is a view of."""
        while self._flow.nodes[node].kind == "alias" and not self._flow.nodes[node].copied:
            node = self._flow.nodes[node].parents[0]
        return node

    def _reached(self, reader: int, parent: int, written: int, time: int) -> bool:
        """Return whether a reader of one name of a value sees what was written into another at some time."""
        memory, read = self._memory(written), reader
        while True:
            parent = self._memory(parent)
            if parent == memory:
                return read >= time
            if self._flow.nodes[parent].kind != "alias":
                return False
            read, parent = parent, self._flow.nodes[parent].parents[0]  # a copy is read when it is made

    # -- attention -------------------------------------------------------------------------------------------

    def _refused(self, plan: AttentionPlan, node: AttentionNode, pre_attn: HookPoint) -> Sequence[str | None]:
        """Return why queries, keys, values, probabilities and head outputs cannot be written, in this order."""
        if id(node) in self._unread or self._flow.root(node.output) not in self._used:
            return [UNREAD] * 5
        other = _OTHER_TERMS if self._has_other_terms(node, pre_attn) else None
        return other, other, None, None if plan.has_probabilities else NO_PROBABILITIES, None

    def _has_other_terms(self, node: AttentionNode, pre_attn: HookPoint) -> bool:
        """Return whether scores that the model sums itself depend on the layer's input beside q·k (DeBERTa, XLNet)."""
        if node.product is None or node.scores is None:
            return False
        state = self._flow.root(self._time_and_node(pre_attn)[1])
        product = self._flow.root(node.product)
        seen, todo = {product}, [self._flow.root(node.scores)]
        while todo:
            current = todo.pop()
            if current == state:
                return True
            if current not in seen and current > state:
                seen.add(current)
                todo += [self._flow.root(p) for p in self._flow.nodes[current].parents]
        return False


def _hook_points(stack: Stack) -> Iterator[tuple[str, int, HookPoint]]:
    yield EMBED, 0, stack.layers[0].pre_attn
    yield FINAL, 0, stack.final
    for layer, plan in enumerate(stack.layers):
        yield from ((stage, layer, point) for stage, point in plan.hook_points().items())
