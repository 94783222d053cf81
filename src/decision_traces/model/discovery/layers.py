"""Finding the layers in a recorded forward pass: which modules they are, what goes in and out, which side they are on.

A layer is an item of the outermost `ModuleList` that attention happened in (or that a chain of states goes through,
where no attention was seen). Models that call no module for a layer (XLM, SqueezeBERT) have their layers cut out of the
residual stream itself: one from each self-attention to the next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn

from decision_traces.format.arrays import ModelTask, Side
from decision_traces.format.heads import HEADS
from decision_traces.model.discovery.dataflow import AttentionNode, Dataflow, ModuleCall
from decision_traces.model.discovery.stream import Refused, Step, Stream
from decision_traces.model.structure import AttentionPlan, HookPoint


@dataclass(slots=True)
class Layer:
    """One layer of a forward pass.

    Attributes:
        name: Its module, or what stands for it.
        source, result: Nodes of the stream at its input and output.
        pre, post: Where these can be read.
        inside: The module calls within.
        span: Indices of its first call and of the first behind it.
        attention: The attention calls within.
    """

    name: str
    source: int
    result: int
    pre: HookPoint
    post: HookPoint
    inside: Sequence[ModuleCall]
    span: tuple[int, int]
    attention: list[AttentionNode] = field(default_factory=list)


class LayerFinder:
    """Finds the layers of every side of a model."""

    def __init__(self, model: nn.Module, flow: Dataflow, lengths: Mapping[str, int], task: ModelTask) -> None:
        """Prepare.

        Args:
            model: The model.
            flow: The record of a forward pass.
            lengths: Positions of each argument of the forward pass.
            task: What the head does.
        """
        self.flow, self.task, self.lengths = flow, task, lengths
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.stray: list[AttentionNode] = []

    def sides(self) -> dict[Side, list[Layer]]:
        """Return the layers of each side, in order.

        Raises:
            Refused: There are none, or they are no chain.
        """
        try:
            sides = self._split(self._module_layers())
            for own in sides.values():
                check_chain(self.flow, own)
        except Refused as reason:
            try:
                return self._flat_layers()
            except Refused:
                raise reason from None
        return sides

    def n_positions(self, side: Side, *, two: bool) -> int:
        """Return how many positions a side has in the record."""
        return self.lengths["decoder_input_ids" if side == "dec" and two else "input_ids"]

    # -- layers that are modules ----------------------------------------------------------------------------

    def _list_of(self, name: str) -> str | None:
        """Return the name of the list of modules that a module is an item of."""
        parent = name.rpartition(".")[0]
        return parent if name and isinstance(self.modules.get(parent), nn.ModuleList) else None

    def _module_layers(self) -> dict[str, list[Layer]]:
        """Return the layers of each list, every call of one in order."""
        calls = self.flow.module_calls
        homes = {}
        for node in self.flow.attention:
            home = next((i for i in node.within if self._list_of(calls[i].name) is not None), None)
            if home is not None:
                homes[id(node)] = home
        lists = {self._list_of(calls[i].name) for i in homes.values()} | self._chains()
        found: dict[int, Layer] = {}
        end = 0
        for index, call in enumerate(calls):
            if index >= end and self._list_of(call.name) in lists:
                found[index] = self._module_layer(index, call, list(found.values()))
                end = call.end
        self.stray = []
        for node in self.flow.attention:
            layer = found.get(homes.get(id(node), -1))
            if layer is None:
                self.stray.append(node)
            else:
                layer.attention.append(node)
        groups: dict[str, list[Layer]] = {}
        for layer in found.values():
            groups.setdefault(self._list_of(layer.name) or "", []).append(layer)
        if not groups or (self.flow.attention and len(self.stray) == len(self.flow.attention)):
            where = f" ({self.stray[0].module!r} does not)" if self.stray else ""
            raise Refused(f"its attention does not lie in a list of layers{where}")
        return groups

    def _module_layer(self, index: int, call: ModuleCall, before: Sequence[Layer]) -> Layer:
        out_key, out_node = self._stream_out(call)
        in_key, in_node = self._stream_in(call, before[-1].result if before else None)
        stream = Stream(self.flow, self.lengths)
        return Layer(
            call.name,
            in_node,
            out_node,
            stream.point(call, "input", in_key),
            stream.point(call, "output", out_key),
            self.flow.module_calls[index + 1 : call.end],
            (index, call.end),
        )

    def _stream_out(self, call: ModuleCall) -> tuple[int | str | None, int]:
        """Return the result of a layer that carries the residual stream, and its node."""
        for key, node in call.outputs.items():
            if len(call.shapes[node]) == 3:
                return key, node
        raise Refused(f"layer {call.name!r} returns no (batch, position, d_model) tensor")

    def _stream_in(self, call: ModuleCall, before: int | None) -> tuple[int | str, int]:
        """Return the argument of a layer that carries the residual stream, and its node."""
        width = call.shapes[self._stream_out(call)[1]]
        found = [(key, node) for key, node in call.inputs.items() if call.shapes[node] == width]
        if not found:
            raise Refused(f"layer {call.name!r} takes no tensor of the shape it returns")
        root = None if before is None else self.flow.root(before)
        return min(found, key=lambda pair: self.flow.root(pair[1]) != root)

    def _chains(self) -> set[str | None]:
        """Return the lists whose items hand a stream on from one to the next, attention or not."""
        by_list: dict[str, list[ModuleCall]] = {}
        end = 0
        for index, call in enumerate(self.flow.module_calls):
            name = self._list_of(call.name)
            if index >= end and name is not None:
                by_list.setdefault(name, []).append(call)
                end = call.end
        found: set[str | None] = set()
        for name, calls in by_list.items():
            try:
                links = [
                    self.flow.root(self._stream_out(a)[1])
                    == self.flow.root(self._stream_in(b, self._stream_out(a)[1])[1])
                    for a, b in pairwise(calls)
                ]
            except Refused:
                continue
            if links and all(links) and self._is_text(calls[0]):
                found.add(name)
        return found

    def _is_text(self, call: ModuleCall) -> bool:
        shape = call.shapes[self._stream_out(call)[1]]
        return 2 in shape[:2] and max(shape[:2]) >= min(self.lengths.values())

    # -- sides ----------------------------------------------------------------------------------------------

    def _split(self, groups: Mapping[str, list[Layer]]) -> dict[Side, list[Layer]]:
        """Tell encoder from decoder: the decoder has attention whose keys come from the other."""
        crossing = {
            name
            for name, own in groups.items()
            if len(groups) > 1 and any(self.is_cross(node, own) for layer in own for node in layer.attention)
        }
        layers = [layer for own in groups.values() for layer in own]
        if not crossing:
            side: Side = "enc" if HEADS[self.task].encoder else "dec"
            return {side: sorted(layers, key=lambda layer: layer.span)}
        sides: dict[Side, list[Layer]] = {"enc": [], "dec": []}
        for name, own in groups.items():
            sides["dec" if name in crossing else "enc"] += own
        if not sides["enc"]:
            raise Refused("its attention reads keys that come from none of its stacks")
        return {side: sorted(own, key=lambda layer: layer.span) for side, own in sides.items()}

    def is_cross(self, node: AttentionNode, own: Sequence[Layer]) -> bool:
        """Return whether keys do not come from the stream of this stack at all."""
        streams = {self.flow.root(layer.source) for layer in own}
        return not streams & self.flow.ancestors(node.key, stop=min(streams))

    # -- layers that are not --------------------------------------------------------------------------------

    def _flat_layers(self) -> dict[Side, list[Layer]]:
        """Cut the stream of a model with one stack into layers, each from one self-attention to the next."""
        if HEADS[self.task].target or not self.flow.attention:
            raise Refused("there is no one stream to cut into layers")
        stream = Stream(self.flow, self.lengths)
        final = stream.last_state(self.flow.attention[-1].output)
        steps = stream.steps(None, final, self.flow.module_calls, until=self.flow.attention[0].output)
        starts = [self._step_of(node, steps) for node in self.flow.attention]
        if sorted(set(starts)) != starts or starts[0] != 0:
            raise Refused("its attention does not write into the stream one after the other")
        layers = []
        for node, start, stop in zip(self.flow.attention, starts, [*starts[1:], len(steps)], strict=True):
            source, result = steps[start].before, steps[stop - 1].after
            pre, post = (stream.reader_of(self.flow.module_calls, state) for state in (source, result))
            span = (node.within[-1], node.within[-1] + 1)
            layers.append(
                Layer(f"{node.module} (layer)", source, result, pre, post, self.flow.module_calls, span, [node])
            )
        self.stray = []
        return {"enc" if HEADS[self.task].encoder else "dec": layers}

    def _step_of(self, node: AttentionNode, steps: Sequence[Step]) -> int:
        output = self.flow.root(node.output)
        for at, step in enumerate(steps):
            if any(output in self.flow.ancestors(w, stop=step.before) for w in step.writes):
                return at
        raise Refused("attention does not write into the residual stream")


def check_chain(flow: Dataflow, layers: Sequence[Layer]) -> None:
    """Every layer must read exactly what the one before it wrote.

    Raises:
        Refused: One does not.
    """
    for before, after in pairwise(layers):
        if flow.root(before.result) != flow.root(after.source):
            raise Refused(f"the input of layer {after.name!r} is not the output of {before.name!r}")


def attention_plan(node: AttentionNode, side: Side, layer: int, *, cross: bool) -> AttentionPlan:
    """Return what is known of one attention call, at a layer of a side (-1 outside all layers)."""
    return AttentionPlan(
        module=node.module,
        side=side,
        layer=layer,
        cross=cross,
        n_heads=node.query_shape[1],
        n_kv_heads=node.key_shape[1] // node.repeats,
        d_head=node.query_shape[-1],
        d_value=node.value_shape[-1],
        scale=node.scaling,
        written_out=node.written_out,
        repeats=node.repeats,
        has_probabilities=node.has_probabilities,
    )
