"""Finding the router of a mixture of experts: a matrix whose product with a state is what experts are chosen by.

In the record of a forward pass, a choice is an operation (the largest k, say) that the layer's output comes from.
Behind it lies the last matrix product before the choice. Where that is one product, of a state of the layer with a
parameter of the model, it is the router; where several products lie there, it is another choice (of keys, say).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from torch import nn

from decision_traces.format.stages import EXPERT, ROUTER
from decision_traces.model.discovery.dataflow import Dataflow, ModuleCall
from decision_traces.model.discovery.layers import Layer
from decision_traces.model.discovery.stream import Refused, Stream
from decision_traces.model.structure import HookPoint, LayerPlan

_CHOICES: Final = frozenset({"aten::topk", "aten::max.dim", "aten::argmax"})
_PRODUCTS: Final = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"})
_PROBABILITIES: Final[Mapping[str, Literal["softmax", "sigmoid"]]] = {
    "aten::_softmax": "softmax",
    "aten::sigmoid": "sigmoid",
}
_OTHER_SCORES: Final = frozenset({"aten::softplus", "aten::tanh", "aten::exp", "aten::relu", "aten::silu"})


@dataclass(frozen=True, slots=True)
class Router:
    """The router of one layer.

    Attributes:
        point: Where its logits are read, and what makes probabilities of them.
        weights: Names of its matrix, (n_experts, width), and of its bias, if any.
        n_experts: Width of the logits.
    """

    point: HookPoint
    weights: tuple[str, ...]
    n_experts: int


def with_routers(
    plans: Sequence[LayerPlan], layers: Sequence[Layer], stream: Stream, model: nn.Module
) -> tuple[list[LayerPlan], dict[str, int]]:
    """Return the plans of layers with their routers, and the length of the axis of experts.

    Args:
        plans: What else is known of each layer.
        layers: The layers.
        stream: Finds where a value can be read.
        model: The model.

    Raises:
        Refused: Some layer's router cannot be read for certain, or they choose from different numbers of experts.
    """
    names = {stream.flow.node(parameter): name for name, parameter in model.named_parameters()}
    routers = [find_router(stream, layer, names) for layer in layers]
    numbers = sorted({router.n_experts for router in routers if router})
    if len(numbers) > 1:
        raise Refused(f"its layers have routers of different numbers of experts ({numbers})")
    found = [
        replace(plan, found={ROUTER: router.point}, weights={ROUTER: router.weights}) if router else plan
        for plan, router in zip(plans, routers, strict=True)
    ]
    return found, {EXPERT: numbers[0]} if numbers else {}


def find_router(stream: Stream, layer: Layer, names: Mapping[int, str]) -> Router | None:
    """Return the router of a layer, None where it chooses no experts.

    Args:
        stream: Finds where a value can be read.
        layer: The layer.
        names: Name of each parameter by its node.

    Raises:
        Refused: There is one, and its probabilities cannot be read for certain.
    """
    flow = stream.flow
    source = flow.root(layer.source)
    made = flow.ancestors(layer.result, stop=source)
    chosen: dict[int, set[int]] = {}
    for choice in sorted(made):
        if flow.nodes[choice].operation in _CHOICES and choice > source:
            products, between = _behind(flow, choice, source)
            if len(products) == 1 and _weights(flow, min(products), names):
                chosen.setdefault(products.pop(), set()).update(between)
    if not chosen:
        return None
    if len(chosen) > 1:
        raise Refused(f"layer {layer.name!r} chooses by {len(chosen)} matrices, not by one")
    ((product, between),) = chosen.items()
    of_chosen = {
        node
        for node in made
        if flow.nodes[node].operation in _PROBABILITIES and _behind(flow, node, source)[0] == {product}
    }
    return _router(stream, layer.inside, product, between, of_chosen - between, names)


def _behind(flow: Dataflow, choice: int, source: int) -> tuple[set[int], set[int]]:
    """Return the first matrix products behind a choice, and the values between them and it."""
    products: set[int] = set()
    between: set[int] = set()
    todo = [choice]
    while todo:
        for parent in map(flow.root, flow.nodes[todo.pop()].parents):
            if flow.nodes[parent].operation in _PRODUCTS:
                products.add(parent)
            elif parent > source and parent not in between:
                between.add(parent)
                todo.append(parent)
    return products, between


def _weights(flow: Dataflow, product: int, names: Mapping[int, str]) -> tuple[str, ...]:
    """Return the names of the parameters in a product of a computed state with a matrix, the matrix first."""
    parents = [flow.root(parent) for parent in flow.nodes[product].parents]
    *bias, state, matrix = parents
    if flow.nodes[state].kind == "leaf" or any(node not in names for node in (matrix, *bias)):
        return ()
    return tuple(names[node] for node in (matrix, *bias))


def _router(
    stream: Stream,
    inside: Sequence[ModuleCall],
    product: int,
    between: set[int],
    of_chosen: set[int],
    names: Mapping[int, str],
) -> Router:
    """Return the router.

    Args:
        stream: Finds where a value can be read.
        inside: The module calls of the layer.
        product: Its logits, before any factor.
        between: The values between them and the choice.
        of_chosen: The softmaxes and sigmoids made of logits behind the choice.
        names: Name of each parameter by its node.

    Raises:
        Refused: Its probabilities cannot be read for certain.
    """
    flow = stream.flow
    made = {node for node in between if flow.nodes[node].operation in _PROBABILITIES}
    if any(flow.nodes[node].operation in _OTHER_SCORES for node in between) or len(made) > 1:
        raise Refused("its layers choose by scores that are no softmax and no sigmoid of one matrix's product")
    logits = flow.root(flow.nodes[min(made)].parents[0]) if made else product
    point = stream.output_of(inside, logits)
    state = flow.root(flow.nodes[product].parents[-2])
    call = next((c for c in inside if point is not None and c.name == point.module), None)
    if point is None or call is None or [state] != [*map(flow.root, call.inputs.values())][:1]:
        raise Refused("no module takes the state that its router reads and returns the router's logits")
    kinds = {_PROBABILITIES[flow.nodes[score].operation] for score in made or of_chosen}
    n_experts = int(call.shapes[call.outputs[point.key]][-1])  # type: ignore[index]
    point = replace(point, made="sigmoid" if kinds == {"sigmoid"} else "softmax")
    return Router(point, _weights(flow, product, names), n_experts)
