"""One tiny forward pass, recorded: which tensor came from which, and which module saw it.

The record is what `probe` reasons about. It knows four things about an operation: whether it only renames its input
(views, casts, copies), whether it adds two tensors of the same shape, whether it multiplies one by a number, or
whether it does anything else.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from decision_traces.model.discovery.intercept import AttentionCall, watch_attention
from decision_traces.model.discovery.softmax import watch_softmax

_ADDS: Final = {torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor}
_TIMES: Final = {torch.ops.aten.mul.Tensor, torch.ops.aten.mul.Scalar, torch.ops.aten.mul_.Tensor}
_COPIES: Final = {
    torch.ops.aten._to_copy.default,
    torch.ops.aten.clone.default,
    torch.ops.aten._reshape_copy.default,
}
_SAME_MEMORY: Final = {torch.ops.aten._unsafe_view.default}


@dataclass(frozen=True, slots=True)
class Node:
    """One value: how it was made, from which values.

    Attributes:
        kind: "alias", "add", "scale", "other" or "leaf".
        parents: Nodes it was made from; of a "scale" the scaled one alone.
        factor: What a "scale" multiplied by.
        operation: Torch's own name of an "other", as `aten::topk`.
        copied: Whether an "alias" has memory of its own: what is written into one is not seen by the other.
    """

    kind: str
    parents: tuple[int, ...]
    factor: float = 1.0
    operation: str = ""
    copied: bool = False


@dataclass(slots=True)
class ModuleCall:
    """One call of one module.

    Attributes:
        name: As in `named_modules`.
        inputs, outputs: Nodes of its tensor arguments and results.
        shapes: Shape by node.
        end: How many calls had begun when this one ended: those in between were made inside it.
        began, ended: How many nodes there were when it began and ended.
    """

    name: str
    inputs: dict[int | str, int] = field(default_factory=dict)
    outputs: dict[int | None, int] = field(default_factory=dict)
    shapes: dict[int, torch.Size] = field(default_factory=dict)
    end: int = 0
    began: int = 0
    ended: int = 0


@dataclass(frozen=True, slots=True)
class AttentionNode:
    """One attention call.

    Attributes:
        module: Name of the module that called.
        within: Indices of the module calls it happened in, outermost first.
        key, output: Nodes of the keys and of the output.
        query_shape, key_shape, value_shape: (batch, heads, positions, width).
        scaling: The factor on q·k.
        written_out: Whether the model wrote attention out itself (see `softmax`).
        repeats: How many neighbouring heads have the same keys and values: the model repeated them.
        has_probabilities: Whether the probabilities could be seen.
        product, scores: Nodes of q·k and of what the softmax read, where the model wrote attention out; else None.
    """

    module: str
    within: tuple[int, ...]
    key: int
    output: int
    query_shape: torch.Size
    key_shape: torch.Size
    value_shape: torch.Size
    scaling: float
    written_out: bool
    repeats: int
    has_probabilities: bool
    product: int | None = None
    scores: int | None = None


class Dataflow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation as a node of a graph. Use `record_forward`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = []
        self.module_calls: list[ModuleCall] = []
        self.open_calls: list[int] = []
        self.attention: list[AttentionNode] = []
        self._node_of: dict[int, int] = {}
        self._alive: list[Tensor] = []  # ids are unique only while the tensors live

    def node(self, tensor: Tensor) -> int:
        """Return the node of a tensor's present value."""
        if id(tensor) not in self._node_of:
            self._assign(tensor, Node("leaf", ()))
        return self._node_of[id(tensor)]

    def _assign(self, tensor: Tensor, node: Node) -> None:
        self._alive.append(tensor)
        self._node_of[id(tensor)] = len(self.nodes)
        self.nodes.append(node)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        parents = tuple(self.node(t) for t in inputs)
        result = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        made = _made(func, args, kwargs, inputs, outputs, parents)
        for out in outputs:
            if func._schema.is_mutable or id(out) not in self._node_of:
                self._assign(out, made)
        return result

    def root(self, node: int) -> int:
        """Return the node whose value this one only renames."""
        while self.nodes[node].kind == "alias":
            node = self.nodes[node].parents[0]
        return node

    def ancestors(self, node: int, stop: int) -> set[int]:
        """Return the roots a value was computed from, itself included, not looking behind `stop`."""
        seen: set[int] = set()
        todo = [self.root(node)]
        while todo:
            current = todo.pop()
            if current in seen:
                continue
            seen.add(current)
            if current != stop:
                todo += [self.root(p) for p in self.nodes[current].parents]
        return seen

    def readers(self) -> dict[int, int]:
        """Return for every root how many operations read it under any of its names."""
        counts: dict[int, int] = {}
        for node in self.nodes:
            if node.kind != "alias":
                for parent in {self.root(p) for p in node.parents}:
                    counts[parent] = counts.get(parent, 0) + 1
        return counts


def _made(
    func: Any, args: Any, kwargs: Any, inputs: list[Tensor], outputs: list[Tensor], parents: tuple[int, ...]
) -> Node:
    if func in _ADDS:
        same = len(inputs) == 2 and inputs[0].numel() == inputs[1].numel() and kwargs.get("alpha", 1) == 1
        return Node("add" if same else "other", parents)
    if func in _TIMES:
        scaled = _scaled(args, inputs, parents)
        return Node("other", parents, operation=func.name()) if scaled is None else scaled
    copied = func in _COPIES
    renames = copied or func in _SAME_MEMORY or func.is_view
    same_size = len(inputs) == 1 and len(outputs) == 1 and inputs[0].numel() == outputs[0].numel()
    if renames and same_size:
        return Node("alias", parents, copied=copied)
    return Node("other", parents, operation=func.name())


def _scaled(args: Any, inputs: list[Tensor], parents: tuple[int, ...]) -> Node | None:
    """Return the node of a product with a number (or a mask of ones, a value a position); None for any other."""
    if len(inputs) == 1:
        return Node("scale", parents, float(args[1] if isinstance(args[0], Tensor) else args[0]))
    by_size = sorted(range(2), key=lambda i: inputs[i].numel())
    if inputs[by_size[0]].numel() == 1 and inputs[by_size[1]].dim() > 1:
        return Node("scale", (parents[by_size[1]],), float(inputs[by_size[0]]))
    mask = inputs[by_size[0]]
    if mask.dim() > 1 and mask.shape[-1] == 1 and bool((mask == 1).all()):
        return Node("alias", (parents[by_size[1]],), copied=True)
    return None


def _scaling(call: AttentionCall) -> float:
    return float(call.scaling) if call.scaling is not None else float(call.query.shape[-1]) ** -0.5


def _repeats(call: AttentionCall) -> int:
    """Return how many neighbouring heads have the same keys and the same values."""
    heads = call.key.shape[1]
    if call.value.shape[1] != heads:
        return 1
    for group in range(heads, 1, -1):
        if heads % group == 0 and all(
            torch.equal(t, t[:, ::group].repeat_interleave(group, 1)) for t in (call.key, call.value)
        ):
            return group
    return 1


@contextmanager
def _module_records(model: nn.Module, flow: Dataflow) -> Iterator[None]:
    """Write every module call into `flow.module_calls`, in the order in which the calls begin."""

    def enter(name: str, args: Any, kwargs: Any) -> None:
        call = ModuleCall(name, began=len(flow.nodes))
        for key, value in (*enumerate(args), *kwargs.items()):
            if isinstance(value, Tensor):
                call.inputs[key] = flow.node(value)
                call.shapes[call.inputs[key]] = value.shape
        flow.open_calls.append(len(flow.module_calls))
        flow.module_calls.append(call)

    def leave(output: Any) -> None:
        call = flow.module_calls[flow.open_calls.pop()]
        call.end, call.ended = len(flow.module_calls), len(flow.nodes)
        values = tuple(output.values()) if isinstance(output, dict) else output
        items = enumerate(values) if isinstance(values, tuple | list) else [(None, values)]
        for key, value in items:
            if isinstance(value, Tensor):
                call.outputs[key] = flow.node(value)
                call.shapes[call.outputs[key]] = value.shape

    with ExitStack() as stack:
        for name, module in model.named_modules():
            before = module.register_forward_pre_hook(lambda _m, a, k, name=name: enter(name, a, k), with_kwargs=True)
            after = module.register_forward_hook(lambda _m, _a, out: leave(out))
            stack.callback(before.remove)
            stack.callback(after.remove)
        yield


def record_forward(model: nn.Module, inputs: Mapping[str, Any]) -> Dataflow:
    """Run the model once on a tiny batch and return the record.

    Args:
        model: A transformers model in eval mode.
        inputs: Keyword arguments of its forward; a few tokens are enough.
    """
    flow = Dataflow()
    names = {id(module): name for name, module in model.named_modules()}

    def on_attention(call: AttentionCall, *, written_out: bool) -> None:
        shapes = call.query.shape, call.key.shape, call.value.shape
        flow.attention.append(
            AttentionNode(
                names.get(id(call.module), ""),
                tuple(flow.open_calls),
                flow.node(call.key),
                flow.node(call.output),
                *shapes,
                _scaling(call),
                written_out,
                _repeats(call),
                call.probabilities is not None,
                None if call.product is None else flow.node(call.product),
                None if call.scores is None else flow.node(call.scores),
            )
        )

    def through_interface(call: AttentionCall) -> None:
        on_attention(call, written_out=False)

    def by_softmax(call: AttentionCall) -> None:
        on_attention(call, written_out=True)

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(watch_attention(through_interface))
        stack.enter_context(watch_softmax(tuple(model.modules()), by_softmax))
        stack.enter_context(_module_records(model, flow))
        stack.enter_context(flow)
        model(**inputs)
    return flow
