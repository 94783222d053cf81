"""One tiny forward pass, recorded: which tensor came from which, and which module saw it.

The record is what `anatomy` reasons about. It knows three things about an operation: whether it only renames
its input (views, casts, copies), whether it adds two tensors of the same shape, or whether it does anything else.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from decision_traces.models.intercept import AttentionCall, watch_attention
from decision_traces.models.softmax import watch_softmax

_ADDS = {torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor}
_COPIES = {
    torch.ops.aten._to_copy.default,
    torch.ops.aten.clone.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten._reshape_copy.default,
}


@dataclass(frozen=True, slots=True)
class Node:
    """One value: how it was made, from which values."""

    kind: str  # "alias", "add", "other" or "leaf"
    parents: tuple[int, ...]


@dataclass(slots=True)
class ModuleCall:
    """One call of one module: the nodes of its tensor arguments and results, with their shapes."""

    name: str
    inputs: dict[int | str, int] = field(default_factory=dict)
    outputs: dict[int | None, int] = field(default_factory=dict)
    shapes: dict[int, torch.Size] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttentionNode:
    """One attention call: the module's name, the node of its output, and the shapes of q, k and v."""

    module: str
    output: int
    query_shape: torch.Size
    key_shape: torch.Size
    value_shape: torch.Size
    scaling: float


class Dataflow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation as a node of a graph. Use `record_forward`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = []
        self.module_calls: list[ModuleCall] = []
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
        kind = _kind(func, args, kwargs, inputs, outputs)
        for out in outputs:
            if func._schema.is_mutable or id(out) not in self._node_of:
                self._assign(out, Node(kind, parents))
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


def _kind(func: Any, args: Any, kwargs: Any, inputs: list[Tensor], outputs: list[Tensor]) -> str:
    if func in _ADDS:
        same = len(inputs) == 2 and inputs[0].numel() == inputs[1].numel() and kwargs.get("alpha", 1) == 1
        return "add" if same else "other"
    renames = func in _COPIES or func.is_view
    same_size = len(inputs) == 1 and len(outputs) == 1 and inputs[0].numel() == outputs[0].numel()
    return "alias" if renames and same_size else "other"


def _scaling(call: AttentionCall) -> float:
    return float(call.scaling) if call.scaling is not None else float(call.query.shape[-1]) ** -0.5


@contextmanager
def _module_records(model: nn.Module, flow: Dataflow) -> Iterator[None]:
    """Write every module call into `flow.module_calls`, in the order in which the calls begin."""
    open_calls: list[ModuleCall] = []

    def enter(name: str, args: Any, kwargs: Any) -> None:
        call = ModuleCall(name)
        for key, value in (*enumerate(args), *kwargs.items()):
            if isinstance(value, Tensor):
                call.inputs[key] = flow.node(value)
                call.shapes[call.inputs[key]] = value.shape
        flow.module_calls.append(call)
        open_calls.append(call)

    def leave(output: Any) -> None:
        call = open_calls.pop()
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


def record_forward(model: nn.Module, inputs: Mapping[str, Any], *, written_out: bool = False) -> Dataflow:
    """Run the model once on a tiny batch and return the record.

    Args:
        model: A transformers model in eval mode.
        inputs: Keyword arguments of its forward; a few tokens are enough.
        written_out: Look for attention that the model writes out itself (`softmax`), instead of attention that
            goes through transformers' interface.
    """
    flow = Dataflow()
    names = {id(module): name for name, module in model.named_modules()}

    def on_attention(call: AttentionCall) -> None:
        shapes = call.query.shape, call.key.shape, call.value.shape
        flow.attention.append(
            AttentionNode(names.get(id(call.module), ""), flow.node(call.output), *shapes, _scaling(call))
        )

    watch = watch_softmax(tuple(model.modules()), on_attention) if written_out else watch_attention(on_attention)
    with torch.no_grad(), watch, _module_records(model, flow), flow:
        model(**inputs)
    return flow
