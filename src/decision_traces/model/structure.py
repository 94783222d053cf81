"""A model's module structure: stacks of layers, their attention, and where each stage is read. `discovery` finds it.

A structure names hook points, never families. A model with an encoder and a decoder has two stacks, any other one.
What a layer does not have, or what could not be found in it, is None, and `Stack.missing` says why.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from decision_traces.format.arrays import Side
from decision_traces.format.stages import (
    ATTN_OUT,
    CROSS,
    CROSS_ATTN_OUT,
    MLP,
    MLP_ACT,
    MLP_OUT,
    POST_ATTN,
    POST_CROSS,
    POST_MLP,
    PRE_ATTN,
    SELF,
    STAGES,
    Part,
    PostAttn,
)
from decision_traces.model.logit_map import LogitMap

IDENTITY = "identity"


@dataclass(frozen=True, slots=True)
class HookPoint:
    """A place where one tensor of the forward pass can be read.

    Attributes:
        module: Name of the module (as in `named_modules`).
        side: Read the module's "input" or its "output".
        key: Position or keyword of the argument; index into a tuple of outputs; None for a bare output.
        call: Which call of that module in one forward pass (shared modules are called several times).
        factor: What the model multiplies the tensor with before it does what the hook point stands for.
        axes: The tensor's axes: b(atch), p(osition), d(_model); XLNet has pbd, SqueezeBERT bdp.
        made: What is made of it last, in float32: its softmax over the last axis, or each value's sigmoid.
    """

    module: str
    side: Literal["input", "output"]
    key: int | str | None
    call: int
    factor: float = 1.0
    axes: Literal["bpd", "pbd", "bdp"] = "bpd"
    made: Literal["softmax", "sigmoid"] | None = None

    def turned(self, value: Tensor) -> Tensor:
        """Return a tensor that was found here as (batch, position, ...), a view."""
        return value if self.axes == "bpd" else value.transpose(0, 1) if self.axes == "pbd" else value.transpose(1, 2)


WritePoint = HookPoint | str
"""Where a stage can be written so that all that reads it reads what was written, or the reason why it cannot be."""


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """One attention call of a forward pass.

    Attributes:
        module: Name of the attention module.
        side, layer: Where it belongs; layer -1 for attention outside all layers, which is not kept.
        cross: Whether its keys come from the encoder.
        n_heads, n_kv_heads: Heads of the queries; of keys and values, before any repetition.
        d_head, d_value: Width of a query (and key) head, of a value head.
        scale: The factor on q·k.
        written_out: Whether the model writes attention out itself (see `softmax`).
        repeats: How often the model repeated each key-value head before the call.
        has_probabilities: Whether the probe saw the probabilities (never under SDPA).
    """

    module: str
    side: Side
    layer: int
    cross: bool
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_value: int
    scale: float
    written_out: bool
    repeats: int
    has_probabilities: bool


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """The hook_points of one layer, and what stands there.

    Attributes:
        pre_attn: The residual stream at the input of the layer.
        post_mlp: The stream at the output of the layer.
        attention, cross: Its self- and its cross-attention.
        post_attn: The stream after self-attention has written; None where it is derived as pre_attn + attn_out.
        post_cross: The stream after cross-attention has written.
        attn_out, cross_out, mlp_out: What self-attention, cross-attention, the MLP add to the stream; None where no
            module returns just that.
        mlp_act: The MLP's hidden neurons: what its last matrix reads.
        mlp_last: Name of the module with that matrix.
        post_attn_kind: See `schema.POST_ATTN_CONVENTIONS`.
        post_attn_norm: Name of the norm that stands between the sum and `post_attn` in a post-LN family.
        post_cross_norm, post_mlp_norm: The same for `post_cross` and `post_mlp`.
        found: Where stages are read that a discovery of their own found, by name (that of their part too).
        weights: Names of the parameters that make such a stage, by its name.
    """

    pre_attn: HookPoint
    post_mlp: HookPoint
    attention: AttentionPlan | None = None
    cross: AttentionPlan | None = None
    post_attn: HookPoint | None = None
    post_cross: HookPoint | None = None
    attn_out: HookPoint | None = None
    cross_out: HookPoint | None = None
    mlp_out: HookPoint | None = None
    mlp_act: HookPoint | None = None
    mlp_last: str | None = None
    post_attn_kind: PostAttn = "stream"
    post_attn_norm: str | None = None
    post_cross_norm: str | None = None
    post_mlp_norm: str | None = None
    found: Mapping[str, HookPoint] = field(default_factory=dict)
    weights: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def hook_points(self) -> dict[str, HookPoint]:
        """Return where each stage can be read that stands at one place, by its name."""
        named = {
            PRE_ATTN: self.pre_attn,
            POST_ATTN: self.post_attn,
            ATTN_OUT: self.attn_out,
            POST_CROSS: self.post_cross,
            CROSS_ATTN_OUT: self.cross_out,
            MLP_ACT: self.mlp_act,
            MLP_OUT: self.mlp_out,
            POST_MLP: self.post_mlp,
            **self.found,
        }
        return {stage: point for stage, point in named.items() if point is not None}

    def has(self, part: Part) -> bool:
        """Return whether the layer has a part."""
        own = {SELF: self.attention, CROSS: self.cross, MLP: self.mlp_out}
        return (own[part] if part in own else self.found.get(part.name)) is not None


@dataclass(frozen=True, slots=True)
class Stack:
    """The layers of one side of a model.

    Attributes:
        side: Which.
        layers: One plan a layer, in the order of execution.
        final: HookPoint of the last hidden state.
        final_norm: Name of the module that leads from the last layer's output to the last hidden state;
            `IDENTITY` where they are the same tensor, None where no single module does it.
        d_model: Width of the stream.
        d_mlp: Width of the MLP's hidden layer; 0 where no layer has one that could be found.
        widths: Lengths of further axes, by their name.
        missing: Stage to the reason why it cannot be had.
        write_points: Stage and layer to where it is written, where that is not the hook point that reads it.
    """

    side: Side
    layers: tuple[LayerPlan, ...]
    final: HookPoint
    final_norm: str | None
    d_model: int
    d_mlp: int = 0
    widths: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    write_points: Mapping[tuple[str, int], WritePoint] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def post_attn_kind(self) -> PostAttn:
        """What `post_attn` is in these layers; one word for all that have attention."""
        return next((layer.post_attn_kind for layer in self.layers if layer.attention), "stream")

    def layers_with(self, stage: str) -> tuple[int, ...]:
        """Return the numbers of the layers that have a stage: those that have the part which it is about."""
        part = STAGES[stage].part
        return self.layers_having(part) if part else tuple(range(self.n_layers))

    def layers_having(self, part: Part) -> tuple[int, ...]:
        """Return the numbers of the layers that have a part."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.has(part))

    def attention(self, *, cross: bool) -> tuple[AttentionPlan, ...]:
        """Return the self- or the cross-attention of its layers."""
        plans = ((layer.cross if cross else layer.attention) for layer in self.layers)
        return tuple(plan for plan in plans if plan is not None)


@dataclass(frozen=True, slots=True)
class ModuleStructure:
    """The inner path of one model.

    Attributes:
        stacks: Its stacks; "enc" before "dec" where there are both.
        calls: Every attention call of a forward pass, in order.
        logits: What becomes logits of the last hidden state's output embedding; None where the way is another one
            (BERT's head has a transform).
        pads: Whether rows of different lengths may share a batch; False where padding changes what the model computes
            at the tokens (a convolution reads over the end of the text, say).
    """

    stacks: Mapping[Side, Stack]
    calls: tuple[AttentionPlan, ...]
    logits: LogitMap | None
    pads: bool = True

    @property
    def main(self) -> Stack:
        """The stack that the outcome is read from: the decoder's where there is one."""
        return self.stacks.get("dec") or self.stacks["enc"]

    @property
    def logits_are_unembedded(self) -> bool:
        """Whether the logits are just the output embedding of the last hidden state: nothing before, nothing after."""
        return self.logits is not None and self.logits.changes_nothing

    @property
    def layers(self) -> tuple[LayerPlan, ...]:
        """The layers of the main stack."""
        return self.main.layers

    @property
    def n_layers(self) -> int:
        """Number of layers of the main stack."""
        return self.main.n_layers

    @property
    def d_model(self) -> int:
        """Width of the main stack's stream."""
        return self.main.d_model

    @property
    def final_norm(self) -> str | None:
        """The main stack's final norm."""
        return self.main.final_norm

    @property
    def written_out(self) -> tuple[str, ...]:
        """Names of the modules that write attention out themselves, and of those around them.

        SqueezeBERT has a module of its own for each product; only the one around them sees both.
        """
        own = [call.module for call in self.calls if call.written_out]
        return tuple(dict.fromkeys(name for module in own for name in (module.rpartition(".")[0], module) if name))

    def missing(self) -> Iterator[tuple[Side, str, str]]:
        """Yield side, stage and reason of everything that cannot be had."""
        for side, stack in self.stacks.items():
            for stage, reason in stack.missing.items():
                yield side, stage, reason

    def with_stack(self, stack: Stack) -> "ModuleStructure":
        """Return this structure with one of its stacks replaced."""
        return replace(self, stacks={**self.stacks, stack.side: stack})

    def without(self, side: Side, stage: str, reason: str) -> "ModuleStructure":
        """Return this structure without a stage that could not be proved."""
        stack = self.stacks[side]
        return self.with_stack(replace(stack, missing={**stack.missing, stage: reason}))
