"""A model that is already in memory: traced through a twin that shares its weights, so that it stays as it is."""

import copy
from itertools import chain
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decision_traces.errors import ModelError
from decision_traces.format.arrays import ModelTask
from decision_traces.model.checkpoint import task_of_class
from decision_traces.model.load import AS_WE_READ, Attention, LoadedModel

_TOKENIZERS: Final[WeakKeyDictionary[nn.Module, PreTrainedTokenizerBase]] = WeakKeyDictionary()
_BY_DIGEST: Final[WeakValueDictionary[str, nn.Module]] = WeakValueDictionary()


def loaded_from_memory(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, task: ModelTask | None = None, attention: Attention = "sdpa"
) -> LoadedModel:
    """Return a model of the caller's as if it had been loaded.

    What is returned holds a twin: modules and config of its own, the same tensors. So neither the mode of the caller's
    model, nor its attention implementation, config or hooks change, whatever becomes of the extraction.

    Args:
        model: A model of transformers, on its device.
        tokenizer: Its tokenizer, a fast one.
        task: What its head does; by default what its class is for.
        attention: "eager" where attention probabilities are wanted.

    Raises:
        ModelError: It is no model of transformers, or its class is not traced; or the tokenizer is a slow one.
    """
    model = plain_model(model)
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
        task=task_of_class(model) if task is None else task,
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


def remember(model: nn.Module, tokenizer: PreTrainedTokenizerBase, digest: str) -> None:
    """Let analyses of runs with these weights find the model, for as long as the caller keeps it."""
    model = plain_model(model)
    _TOKENIZERS[model], _BY_DIGEST[digest] = tokenizer, model


def recall(digest: str | None) -> tuple[nn.Module, PreTrainedTokenizerBase] | None:
    """Return the model in memory that had these weights, with its tokenizer; None where there is none."""
    model = None if digest is None else _BY_DIGEST.get(digest)
    return None if model is None else (model, _TOKENIZERS[model])


def _twin(model: nn.Module) -> Any:
    """Return a copy of a model's modules and config that shares every parameter and buffer."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, dict(shared))


def _set_attention(twin: Any, attention: Attention) -> None:
    """Set which attention implementation computes; a family without SDPA is eager in any case."""
    try:
        twin.set_attn_implementation(attention)
    except ValueError:
        twin.set_attn_implementation("eager")
