"""Finding a model's structure by probing: one recorded forward pass, and reasoning about it. No family names.

1. Every attention call belongs to the item of the outermost `ModuleList` it happened in: the layer. The other items of
   that list are layers too, without attention (hybrid models).
2. Attention whose keys do not come from its own stack is cross-attention; the stack that has it is the decoder.
3. Inside a layer the residual stream is followed from the output back to the input (`stream`). `post_attn` is the
   state of the stream after attention has written, read where a module consumes it. Where attention and MLP write in
   one and the same step (parallel blocks) there is no such state, and it is derived.

What cannot be found is refused with the reason: a stage by itself, or the model where nothing would be left. The
plan is believed only after `capture.certificate` has checked its numbers on another input.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from decision_traces.errors import UnsupportedArchitecture
from decision_traces.format.arrays import ModelTask, Side
from decision_traces.format.stages import (
    ATTN_OUT,
    CROSS,
    CROSS_ATTN_OUT,
    CROSS_PARTS,
    MLP,
    MLP_ACT,
    MLP_OUT,
    POST_ATTN,
    POST_CROSS,
    ROUTER,
    SELF,
    SELF_PARTS,
    PostAttn,
    checked_by,
    stages_of,
)
from decision_traces.model.discovery.dataflow import AttentionNode, Dataflow, ModuleCall, record_forward
from decision_traces.model.discovery.layers import Layer, LayerFinder, attention_plan
from decision_traces.model.discovery.router import with_routers
from decision_traces.model.discovery.stream import Refused, Step, Stream
from decision_traces.model.discovery.writing import with_write_points
from decision_traces.model.logit_map import LogitMap, find_logit_map
from decision_traces.model.structure import (
    IDENTITY,
    AttentionPlan,
    HookPoint,
    LayerPlan,
    ModuleStructure,
    Stack,
)
from decision_traces.model.task import probe_inputs


def find_structure(model: nn.Module, vocab_size: int, task: ModelTask = "causal") -> ModuleStructure:
    """Probe a model and return its structure.

    Args:
        model: A transformers model with the head of its task, in eval mode.
        vocab_size: Upper bound (exclusive) of the ids used in the probe.
        task: What the head does.

    Raises:
        UnsupportedArchitecture: The layers or their stream could not be found; the message says which and why.
    """
    return find_structure_on(model, probe_inputs(task, vocab_size, next(model.parameters()).device), task)


def find_structure_on(model: nn.Module, inputs: Mapping[str, Any], task: ModelTask) -> ModuleStructure:
    """As `find_structure`, on given arguments of the model's forward; two rows without padding."""
    flow = record_forward(model, inputs)
    try:
        return _Finder(model, flow, inputs, task).structure()
    except Refused as reason:
        raise UnsupportedArchitecture(
            f"{type(model).__name__} is not understood: {reason}. "
            "Nothing was extracted, because a guess could be wrong."
        ) from None


class _Finder:
    """The reasoning of `find_structure` over one record."""

    def __init__(self, model: nn.Module, flow: Dataflow, inputs: Mapping[str, Any], task: ModelTask) -> None:
        self.model, self.flow, self.inputs, self.task = model, flow, inputs, task
        self.modules = dict(model.named_modules(remove_duplicate=False))
        lengths = {k: v.shape[-1] for k, v in inputs.items() if isinstance(v, Tensor)}
        self.layers = LayerFinder(model, flow, lengths, task)

    def structure(self) -> ModuleStructure:
        sides = self.layers.sides()
        stacks = {side: _StackFinder(self, side, sides).stack() for side in sides}
        calls = self._calls(stacks, sides)
        main = stacks.get("dec") or stacks["enc"]
        logits = self._logits(main.final)
        stacks = with_write_points(self.model, self.inputs, self.layers, stacks, calls)
        return ModuleStructure(stacks, calls, logits)

    def _calls(self, stacks: Mapping[Side, Stack], sides: Mapping[Side, Sequence[Layer]]) -> tuple[AttentionPlan, ...]:
        """Return the plans of all attention calls in the order in which they happen."""
        plans = {id(node): attention_plan(node, next(iter(stacks)), -1, cross=False) for node in self.layers.stray}
        for side, own in sides.items():
            for layer, plan in zip(own, stacks[side].layers, strict=True):
                for node in layer.attention:
                    cross = plan.cross is not None and self.layers.is_cross(node, own)
                    chosen = plan.cross if cross else plan.attention
                    plans[id(node)] = chosen or attention_plan(node, side, -1, cross=False)
        return tuple(plans[id(node)] for node in self.flow.attention)

    # -- the end --------------------------------------------------------------------------------------------

    def _logits(self, final: HookPoint) -> LogitMap | None:
        """Return what leads from the last hidden state to the logits, None where it is more than the output embedding.

        A transform in front of it (BERT's head) is more; a factor in front, or what `LogitMap` knows behind, is not.
        """
        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        calls = {c.name: c for c in self.flow.module_calls}
        call = calls.get(next((n for n, m in self.modules.items() if m is head), ""))
        if head is None or call is None or final.module not in calls:
            return None
        state = calls[final.module].outputs.get(final.key)  # type: ignore[arg-type]
        before = None if state is None else self._factor(call.inputs.values(), self.flow.root(state))
        if before is None or not call.outputs:
            return None
        writes = {self.flow.root(n) for n in call.outputs.values()}
        if writes & {self.flow.root(n) for n in calls[""].outputs.values()}:
            return LogitMap(before)
        return find_logit_map(self.model, head, self.inputs, call.shapes[next(iter(call.outputs.values()))], before)

    def _factor(self, nodes: Iterable[int], state: int) -> float | None:
        """Return what a state was multiplied by to become one of these values, None where that is not all."""
        for node in map(self.flow.root, nodes):
            factor = 1.0
            while node != state and self.flow.nodes[node].kind == "scale":
                factor, node = factor * self.flow.nodes[node].factor, self.flow.root(self.flow.nodes[node].parents[0])
            if node == state:
                return factor
        return None


class _StackFinder:
    """The reasoning about one side's layers."""

    def __init__(self, whole: _Finder, side: Side, sides: Mapping[Side, Sequence[Layer]]) -> None:
        self.whole, self.flow, self.side, self.layers = whole, whole.flow, side, sides[side]
        self.n_positions = whole.layers.n_positions(side, two=len(sides) > 1)
        self.stream = Stream(whole.flow, whole.layers.lengths)
        self.others = [layer for s, own in sides.items() if s != side for layer in own]
        self.missing: dict[str, str] = {}

    def stack(self) -> Stack:
        d_model = self._d_model()
        final, norm = self._final(d_model)
        plans = [self._plan(i, layer) for i, layer in enumerate(self.layers)]
        plans, widths = self._with_routers(plans)
        if not any(p.attention for p in plans):
            for stage in stages_of(SELF, MLP):
                self.missing.setdefault(stage, "no layer has attention that could be seen")
        kinds = sorted({p.post_attn_kind for p in plans if p.attention and POST_ATTN not in self.missing})
        if len(kinds) > 1:
            self.missing[POST_ATTN] = f"its layers differ in where attention writes ({', '.join(kinds)})"
        self._note_gaps(plans)
        d_mlp = self._d_mlp(plans)
        return Stack(self.side, tuple(plans), final, norm, d_model, d_mlp, widths=widths, missing=self.missing)

    # -- layers ---------------------------------------------------------------------------------------------

    def _d_model(self) -> int:
        """Return the width of the stream; it must have a state for every position (behind them may be others)."""
        sizes = self.stream.shape_of(self.layers[0].post)
        if sizes["b"] != 2 or sizes["p"] < self.n_positions:
            raise Refused(f"its layers do not work on one state a position (they return {tuple(sizes.values())})")
        return sizes["d"]

    def _plan(self, index: int, layer: Layer) -> LayerPlan:
        nodes = {cross: [n for n in layer.attention if self._crosses(n) == cross] for cross in (False, True)}
        if max(map(len, nodes.values())) > 1:
            return self._crowded(layer, nodes)
        plan = LayerPlan(
            pre_attn=layer.pre,
            post_mlp=layer.post,
            attention=next((self._attention(index, n, cross=False) for n in nodes[False]), None),
            cross=next((self._attention(index, n, cross=True) for n in nodes[True]), None),
        )
        try:
            steps = self.stream.steps(self.flow.root(layer.source), self.flow.root(layer.result), layer.inside)
            return _Halves(self, steps, layer.inside, nodes[False], nodes[True]).fill(plan)
        except Refused as reason:
            self._refuse(plan, str(reason))
            return plan

    def _crowded(self, layer: Layer, nodes: Mapping[bool, Sequence[AttentionNode]]) -> LayerPlan:
        """Return the plan of a layer with more than one attention of a kind: its stream alone."""
        kind = "self-attention" if len(nodes[False]) > 1 else "cross-attention"
        reason = f"layer {layer.name!r} has {max(map(len, nodes.values()))} calls of {kind}, not one"
        stages = (*SELF_PARTS, *(CROSS_PARTS if self.others else ()), *stages_of(SELF, MLP))
        self.missing |= dict.fromkeys(stages, reason)
        return LayerPlan(pre_attn=layer.pre, post_mlp=layer.post)

    def _refuse(self, plan: LayerPlan, reason: str) -> None:
        attending = [part for part in (SELF, CROSS) if plan.has(part)]
        for part in (*attending, *((MLP,) if attending else ())):
            for stage in checked_by("state", "write", "neurons", part=part):
                self.missing.setdefault(stage, reason)

    def _crosses(self, node: AttentionNode) -> bool:
        return bool(self.others) and self.side == "dec" and self.whole.layers.is_cross(node, self.layers)

    def _attention(self, index: int, node: AttentionNode, *, cross: bool) -> AttentionPlan:
        query, key, value = node.query_shape, node.key_shape, node.value_shape
        stages = CROSS_PARTS if cross else SELF_PARTS
        fits = len(query) == len(key) == len(value) == 4 and query[0] == key[0] == value[0] == 2
        if not fits or query[2] < self.n_positions or (not cross and key[2] < self.n_positions):
            for stage in stages:
                self.missing[stage] = f"its attention does not work on one query and key a position ({tuple(query)})"
        elif query[3] != key[3] or key[1] != value[1] or query[1] % key[1]:
            for stage in stages:
                self.missing[stage] = f"its q, k and v have shapes that do not fit ({tuple(query)}, {tuple(key)})"
        elif not node.has_probabilities and self.whole.model.config._attn_implementation == "eager":  # type: ignore[union-attr]
            self.missing[stages[3]] = "its attention is one fused operation, which gives no probabilities"
        return attention_plan(node, self.side, index, cross=cross)

    def _note_gaps(self, plans: Sequence[LayerPlan]) -> None:
        """Name the reason for what no module gives in some layer that should have it."""
        no_module = "no module returns just what {} adds to the residual stream"
        if any(p.attention and p.attn_out is None for p in plans):
            self.missing.setdefault(ATTN_OUT, no_module.format("attention"))
        if any(p.cross and p.cross_out is None for p in plans):
            for stage in (CROSS_ATTN_OUT, POST_CROSS):  # nothing else would prove the state behind it
                self.missing.setdefault(stage, no_module.format("cross-attention"))
        if all(p.mlp_out is None for p in plans):
            self.missing.setdefault(MLP_OUT, no_module.format("the MLP"))

    def _d_mlp(self, plans: Sequence[LayerPlan]) -> int:
        """Return the width of the hidden neurons; where not all MLPs have some of one width, they are missing."""
        if MLP_OUT in self.missing:
            self.missing.setdefault(MLP_ACT, self.missing[MLP_OUT])
        widths = {self._width(p.mlp_act) for p in plans if p.mlp_out is not None}
        if len(widths) == 1 and None not in widths and MLP_ACT not in self.missing:
            return int(widths.pop() or 0)
        self.missing.setdefault(
            MLP_ACT, "not every MLP is one matrix behind hidden neurons of one width (a mixture of experts, say)"
        )
        return 0

    def _width(self, point: HookPoint | None) -> int | None:
        if point is None:
            return None
        call = next(c for c in self.flow.module_calls if c.name == point.module)
        shape = call.shapes[call.inputs[point.key]]  # type: ignore[index]
        return int(dict(zip(point.axes, shape, strict=True))["d"]) if len(shape) == 3 else int(shape[-1])

    def _with_routers(self, plans: list[LayerPlan]) -> tuple[list[LayerPlan], dict[str, int]]:
        try:
            return with_routers(plans, self.layers, self.stream, self.whole.model)
        except Refused as reason:
            self.missing[ROUTER] = str(reason)
            return plans, {}

    # -- the end --------------------------------------------------------------------------------------------

    def _final(self, d_model: int) -> tuple[HookPoint, str | None]:
        """Return the hook point of the last hidden state, and the name of the norm in front of it."""
        before = self.flow.root(self.layers[-1].result)
        around = self._around()
        for call in around:
            for key, node in call.outputs.items():
                shape = call.shapes[node]
                if len(shape) != 3:
                    continue
                point = self.stream.point(call, "output", key)
                sizes = dict(zip(point.axes, shape, strict=True))
                if (sizes["b"], sizes["p"], sizes["d"]) != (2, self.n_positions, d_model):
                    continue
                after = self.flow.root(node)
                if before in self.flow.ancestors(after, stop=before):
                    return point, IDENTITY if before == after else self._norm(before, after)
        logits = {self.flow.root(n) for c in self.flow.module_calls if not c.name for n in c.outputs.values()}
        for call in self.flow.module_calls[self.layers[-1].span[1] :]:
            is_head = logits & set(map(self.flow.root, call.outputs.values()))
            if is_head and before in map(self.flow.root, call.inputs.values()):
                return self.layers[-1].post, IDENTITY  # the head reads the last layer's output itself
        raise Refused("no module around its layers returns a last hidden state as wide as the residual stream")

    def _around(self) -> list[ModuleCall]:
        """Return the calls that hold all layers of this side and none of another, outermost first."""
        first, last = self.layers[0].span[0], self.layers[-1].span[1]
        calls = [
            c
            for i, c in enumerate(self.flow.module_calls)
            if i < first and c.end >= last and not any(i < other.span[0] < c.end for other in self.others)
        ]
        return [*(c for c in calls if c.name), *(c for c in calls if not c.name)]

    def _norm(self, before: int, after: int) -> str | None:
        norms = [
            c.name
            for c in self.flow.module_calls
            if before in map(self.flow.root, c.inputs.values()) and after in map(self.flow.root, c.outputs.values())
        ]
        return norms[-1] if norms else None


class _Halves:
    """The reasoning about one layer's steps: which is attention's, which cross-attention's, which the MLP's."""

    def __init__(
        self,
        finder: _StackFinder,
        steps: Sequence[Step],
        inside: Sequence[ModuleCall],
        attention: Sequence[AttentionNode],
        cross: Sequence[AttentionNode],
    ) -> None:
        self.finder, self.stream, self.flow = finder, finder.stream, finder.flow
        self.steps, self.inside, self.attention, self.cross = steps, inside, attention, cross

    def fill(self, plan: LayerPlan) -> LayerPlan:
        """Return the plan with what could be found."""
        last_norm = next((s.norm for s in reversed(self.steps) if s.norm), None) if self.steps else None
        after = list(self.steps)
        for node in self.attention:
            at, terms = self._step_of(node)
            plan, parallel = self._with_attention(plan, self.steps[at], terms)
            after = list(self.steps[at + 1 :])
            if parallel and after:
                return replace(plan, post_mlp_norm=last_norm)  # beside attention stands a mixer; the MLP comes behind
            if parallel:
                return self._with_mlp(plan, self.steps[at], parallel)
        for node in self.cross:
            at, terms = self._step_of(node)
            step = self.steps[at]
            if len(terms) < len(step.writes):
                raise Refused("cross-attention and something else write in one step")
            plan = replace(
                plan,
                post_cross=self._state(plan, step.after),
                cross_out=self._output(step, terms),
                post_cross_norm=step.norm,
            )
            after = list(self.steps[at + 1 :])
        norm = after[-1].norm if after else None
        plan = replace(plan, post_mlp_norm=norm)
        if not self.attention and not self.cross:
            return plan  # nothing tells its mixer (of whatever kind) from its MLP
        return self._with_mlp(plan, after[0], after[0].writes) if len(after) == 1 else plan

    def _state(self, plan: LayerPlan, state: int) -> HookPoint:
        if state == self.steps[-1].after:
            return plan.post_mlp
        return self.stream.reader_of(self.inside, state)

    def _step_of(self, node: AttentionNode) -> tuple[int, tuple[int, ...]]:
        """Return which step an attention writes in, and which of its writes come from it."""
        output = self.flow.root(node.output)
        for at, step in enumerate(self.steps):
            terms = tuple(w for w in step.writes if output in self.flow.ancestors(w, stop=step.before))
            if terms:
                return at, terms
        raise Refused("attention does not write into the residual stream")

    def _with_attention(self, plan: LayerPlan, step: Step, terms: tuple[int, ...]) -> tuple[LayerPlan, tuple[int, ...]]:
        """Return the plan with self-attention's half, and what else is written in the same step."""
        others = tuple(w for w in step.writes if w not in terms)
        write = self._output(step, terms)
        if (others or step.norm) and write is None:
            raise Refused("no module returns what attention adds to the residual stream")
        kind: PostAttn = "derived" if others else "post_norm" if step.norm else "stream"
        return replace(
            plan,
            post_attn=None if others else self._state(plan, step.after),
            attn_out=write,
            post_attn_kind=kind,
            post_attn_norm=None if others else step.norm,
        ), others

    def _output(self, step: Step, terms: Sequence[int]) -> HookPoint | None:
        total = self.stream.total_of(step, self.inside)
        write = self.stream.whole_write(step, terms, total)
        return None if write is None else self.stream.output_of(self.inside, write)

    def _with_mlp(self, plan: LayerPlan, step: Step, terms: Sequence[int]) -> LayerPlan:
        point = self._output(step, terms)
        if point is None:
            return plan
        plan = replace(plan, mlp_out=point)
        if len(terms) > 1:
            return plan
        for call in reversed(self.inside):
            module = self.finder.whole.modules[call.name]
            weight = getattr(module, "weight", None)
            if next(module.children(), None) is not None or not isinstance(weight, Tensor) or weight.dim() != 2:
                continue
            for out in map(self.flow.root, call.outputs.values()):
                behind = self.flow.ancestors(terms[0], stop=out)
                if out in behind:
                    # All of the term must come through this matrix.
                    alone = step.before not in behind and len(call.inputs) == 1
                    (key, *_) = call.inputs
                    act = self.stream.point(call, "input", key) if alone else None
                    return replace(plan, mlp_act=act, mlp_last=call.name if act else None)
        return plan
