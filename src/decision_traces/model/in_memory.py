"""A model that is already in memory: traced through a twin that shares its weights, so that it stays as it is."""

import copy
from collections.abc import Iterator
from itertools import chain
from types import FunctionType, MethodType
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decision_traces.errors import ModelError, first_line
from decision_traces.format.arrays import ModelTask
from decision_traces.format.heads import HEADS
from decision_traces.model.checkpoint import task_of_class
from decision_traces.model.load import AS_WE_READ, Attention, LoadedModel

Remembered = tuple[str, PreTrainedTokenizerBase]
"""Digest of the weights, and the tokenizer."""

_TRACED: Final[WeakKeyDictionary[nn.Module, Remembered]] = WeakKeyDictionary()
_DIGESTS: Final[set[str]] = set()
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_UNCOPIED: Final = (TypeError, RuntimeError)  # a lock or a generator; a tensor that was computed


def loaded_from_memory(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, task: ModelTask | None = None, attention: Attention = "sdpa"
) -> LoadedModel:
    """Return a model of the caller's as if it had been loaded.

    What is returned holds a twin: modules and config of its own, the same tensors and hooks. So neither the mode of the
    caller's model, nor its attention implementation, config or hooks change, whatever becomes of the extraction.

    Args:
        model: A model of transformers, on its device.
        tokenizer: Its tokenizer, a fast one.
        task: What its head does; by default what its class is for.
        attention: "eager" where attention probabilities are wanted.

    Raises:
        ModelError: It is no model of transformers, or its class is not traced or for another task; its weights are not
            there, or of a type that is not traced; it cannot be copied; or the tokenizer is a slow one.
    """
    model = traced_part(model, task)
    _refuse_weights(model)
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} is no fast tokenizer of transformers, which gives character offsets. "
            "Give one, such as AutoTokenizer.from_pretrained(...) returns."
        )
    twin = _twin(model)
    for name, value in AS_WE_READ.items():
        setattr(twin.config, name, value)
    _set_attention(twin, attention)
    return LoadedModel(
        model=twin.eval(),
        tokenizer=tokenizer,
        config=twin.config,
        device=next(model.parameters()).device,
        revision=getattr(twin.config, "_commit_hash", None),
        attention=twin.config._attn_implementation,
        task=task_of_class(model),
    )


def plain_model(model: nn.Module) -> PreTrainedModel:
    """Return a model of transformers as it is before it was compiled: hooks would not be called in compiled code.

    Raises:
        ModelError: It is no model of transformers.
    """
    plain: Any = getattr(model, "_orig_mod", model)
    if not isinstance(plain, PreTrainedModel):
        raise ModelError(f"{type(plain).__name__} is no model of transformers (a PreTrainedModel). Give such a model.")
    return plain


def traced_part(model: nn.Module, task: ModelTask | None = None) -> PreTrainedModel:
    """Return what of a model a task traces: itself, or without its head where it is asked for states alone.

    Raises:
        ModelError: It is no model of transformers, or none for this task.
    """
    plain = plain_model(model)
    if task is not None and not HEADS[task].logits:
        plain = plain.base_model
    own = task_of_class(plain)
    if task not in {None, own}:
        raise ModelError(
            f"{type(plain).__name__} is a model for task {own!r}, and what is asked for is {task!r}. Give a model of "
            "that kind, or leave the task out."
        )
    return plain


def remember(model: nn.Module, tokenizer: PreTrainedTokenizerBase, digest: str) -> None:
    """Let analyses of runs with these weights find the model, for as long as the caller keeps it."""
    _TRACED[model] = digest, tokenizer
    _DIGESTS.add(digest)


def recall(digest: str | None) -> list[tuple[nn.Module, PreTrainedTokenizerBase]]:
    """Return the models in memory that had these weights when they were traced, the last one first, with tokenizers."""
    return [(model, tokenizer) for model, (known, tokenizer) in reversed([*_TRACED.items()]) if known == digest]


def was_in_memory(digest: str | None) -> bool:
    """Return whether a model with these weights was traced in this process."""
    return digest in _DIGESTS


# -- the twin ------------------------------------------------------------------------------------------------


def _refuse_weights(model: PreTrainedModel) -> None:
    """Refuse weights that cannot be computed with, or to less than what a run keeps."""
    name, weights = type(model).__name__, (*model.parameters(), *model.buffers())
    if absent := sum(tensor.is_meta for tensor in weights):
        raise ModelError(
            f"{absent} of the weights of this {name} are on the meta device, where there are no numbers (offloaded, or "
            "never loaded). Load the whole model first."
        )
    if any(tensor.dtype == torch.float64 for tensor in model.parameters()):
        raise ModelError(
            f"This {name} computes in float64, which is not traced. Give a copy in float32: model.float()."
        )
    head = model.get_output_embeddings()
    if head is not None and not isinstance(getattr(head, "weight", None), Tensor):
        raise ModelError(
            f"The head of this {name} has no matrix of weights (it is quantized). Give the model as it was."
        )


def _twin(model: PreTrainedModel) -> Any:
    """Return a copy of a model's modules and config that shares every tensor, and what hooks hold.

    Raises:
        ModelError: Something on a module cannot be copied, or would lead back to the caller's model.
    """
    shared = {id(thing): thing for thing in chain(model.buffers(), _on_modules(model))}
    for name, module in model.named_modules():
        if not hasattr(module, "_orig_mod") and _leads_back(vars(module).get("forward")):
            where = f"{name}.forward".lstrip(".")
            raise ModelError(
                f"{type(model).__name__} cannot be traced while {where} is a function that was put in its place "
                "(torch.compile of it, or a patch): a copy would run the modules of the original. Delete it "
                f"(`del model.{where}`)."
            )
    try:
        return copy.deepcopy(model, dict(shared))
    except _UNCOPIED as error:
        where = ", ".join(_uncopied(model, shared)) or "a module"
        raise ModelError(
            f"{type(model).__name__} cannot be copied (all but its weights), as a model in memory is traced: {where} "
            f"holds what cannot be ({first_line(error)}). Delete that first."
        ) from error


def _on_modules(model: nn.Module) -> Iterator[Any]:
    """Yield what a twin has in common with its model: tensors, and hooks that are no methods of its modules."""
    for module in model.modules():
        yield from module.parameters(recurse=False)
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))
        for hook in chain.from_iterable(getattr(module, name).values() for name in _HOOKS):
            if not (isinstance(hook, MethodType) and isinstance(hook.__self__, nn.Module)):
                yield hook


def _leads_back(forward: Any) -> bool:
    """Return whether a function calls modules that it brings along, which a copy of it would call too."""
    if not isinstance(forward, FunctionType):
        return False
    brought = [cell.cell_contents for cell in forward.__closure__ or ()]
    return any(isinstance(getattr(value, "__self__", value), nn.Module) for value in brought)


def _uncopied(model: nn.Module, shared: dict[int, Any]) -> Iterator[str]:
    """Yield the names of attributes that cannot be copied."""
    shared = shared | {id(module): module for module in model.modules()}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            try:
                copy.deepcopy(value, dict(shared))
            except _UNCOPIED:
                yield f"{name}.{attribute}".lstrip(".")


def _set_attention(twin: Any, attention: Attention) -> None:
    """Set which attention implementation computes; a family without SDPA is eager in any case."""
    try:
        twin.set_attn_implementation(attention)
    except ValueError:
        twin.set_attn_implementation("eager")
