"""What a checkpoint is for: the task whose head its config names and its weights hold."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForSeq2SeqLM,
    AutoModelForTextEncoding,
)
from transformers.models.auto import modeling_auto
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES as CHOICE
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES as ENCODERS
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES as BARE

from decision_traces.errors import ModelError
from decision_traces.format.arrays import ModelTask, TextTask
from decision_traces.format.heads import HEADS

_HEADS: Final[dict[ModelTask, Any]] = {
    "causal": AutoModelForCausalLM,
    "multiple_choice": AutoModelForMultipleChoice,
    "masked": AutoModelForMaskedLM,
    "encode": AutoModel,
    "seq2seq": AutoModelForSeq2SeqLM,
}
_NEEDS: Final[Mapping[ModelTask, tuple[str, str]]] = {
    "causal": ("a decoder", "a causal language model, such as gpt2"),
    "multiple_choice": ("an encoder with a multiple-choice head", f"one of {', '.join(sorted(CHOICE))}"),
    "masked": ("an encoder with a masked-language-modelling head", "such a model, such as bert-base-uncased"),
    "encode": ("an encoder", "an encoder, such as bert-base-uncased"),
    "seq2seq": ("an encoder-decoder", "an encoder-decoder, such as t5-small"),
}
"""What each task needs: what a model must be, and what to give instead."""
STATES_ALONE: Final = "`decision-traces extract --task encode` traces its states without a head"


def _classes(*mappings: Mapping[str, Any]) -> frozenset[str]:
    values = [name for mapping in mappings for name in mapping.values()]
    return frozenset(n for name in values for n in ((name,) if isinstance(name, str) else name))


_OTHER_HEADS: Final = _classes(
    CHOICE,
    modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_TABLE_QUESTION_ANSWERING_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES,
) - _classes(CAUSAL, MASKED)
_ENCODERS_ALONE: Final = _classes(ENCODERS) - _classes(BARE)
"""The encoders of encoder-decoders, which have a class of their own (T5EncoderModel)."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What loading found out about a checkpoint's weights.

    Attributes:
        missing: Names of the model's parameters that are not in the checkpoint: they are random numbers.
        unused: Names of the checkpoint's weights that the model does not have; without those that transformers
            itself knows to be of no use.
    """

    missing: tuple[str, ...]
    unused: tuple[str, ...]

    @classmethod
    def of(cls, report: Mapping[str, Collection[str]]) -> "Weights":
        """Return what the loading report of transformers says."""
        return cls(tuple(sorted(report["missing_keys"])), tuple(sorted(report["unexpected_keys"])))


def auto_class(config: Any, task: ModelTask) -> Any:
    """Return the class of transformers that loads a model for a task."""
    return AutoModelForTextEncoding if not HEADS[task].logits and _has_encoder_alone(config) else _HEADS[task]


def _has_encoder_alone(config: Any) -> bool:
    """Return whether a class of transformers is the encoder of this kind of encoder-decoder."""
    return ENCODERS.get(config.model_type) in _ENCODERS_ALONE


def _built(config: Any) -> str:
    """Return the name of the class that the checkpoint was saved from; empty where its config names none."""
    return str(next(iter(getattr(config, "architectures", None) or ()), ""))


def _is_encoder(config: Any) -> bool:
    return config.model_type in MASKED and not getattr(config, "is_decoder", False)


def brings(config: Any, task: ModelTask) -> bool:
    """Return whether the model comes with a class of its own for a task; without trust, loading it says so."""
    return _HEADS[task].__name__ in (getattr(config, "auto_map", None) or {})


def task_of(config: Any, location: str, has_head: Callable[[ModelTask], bool]) -> TextTask:
    """Return what a checkpoint is for.

    Args:
        config: Its config.
        location: Its name in messages.
        has_head: Looks in the checkpoint for the head of a task.

    Raises:
        ModelError: It has a head that is not traced.
    """
    built = _built(config)
    refuse_other_heads(config, location, "causal")
    if built in _ENCODERS_ALONE:
        return "encode"
    if config.is_encoder_decoder:
        return "seq2seq"
    if _is_encoder(config):
        return "masked" if has_head("masked") else "encode"
    if brings(config, "causal"):
        return "causal"
    if config.model_type not in CAUSAL:
        return "encode"
    return "causal" if built in _classes(CAUSAL) or has_head("causal") else "encode"


def task_of_class(model: Any) -> ModelTask:
    """Return what a model is for, judged by its class.

    Raises:
        ModelError: It has a head that is not traced.
    """
    name, config = type(model).__name__, model.config
    if name in _classes(CHOICE):
        return "multiple_choice"
    if name in _OTHER_HEADS:
        raise ModelError(f'{name}: tracing classifiers is not there yet; task="encode" traces its states alone.')
    headless = model.get_output_embeddings() is None
    if config.is_encoder_decoder:
        if headless and name not in _ENCODERS_ALONE:
            raise ModelError(f"{name} is an encoder-decoder without a head that predicts words. Give one with a head.")
        return "encode" if name in _ENCODERS_ALONE else "seq2seq"
    if headless:
        return "encode"
    if not _is_encoder(config):
        return "causal"
    if name not in _classes(MASKED):
        raise ModelError(
            f'{name} is an encoder with a head that is not traced; task="encode" traces its states alone. A masked-'
            f"language model of its kind is {MASKED[config.model_type]}."
        )
    return "masked"


def refuse_other_kinds(config: Any, location: str, task: ModelTask) -> None:
    """Refuse a model that is not of the kind that a task needs.

    Raises:
        ModelError: Says what it is.
    """
    kind, two = config.model_type, bool(config.is_encoder_decoder)
    if two and not HEADS[task].target and not (not HEADS[task].logits and _has_encoder_alone(config)):
        needs = "decoders" if HEADS[task].decoder else "encoders"
        raise ModelError(
            f"{location} is an encoder-decoder ({kind}); this command traces {needs}. "
            "`decision-traces extract` traces encoder-decoders."
        )
    fits = {
        "causal": kind in CAUSAL and not _is_encoder(config),
        "multiple_choice": kind in CHOICE,
        "masked": kind in MASKED,
        "encode": not getattr(config, "is_decoder", False),
        "seq2seq": two,
    }[task]
    if not fits and not brings(config, task):
        what, needs = _NEEDS[task]
        advice = "" if two or not HEADS[task].logits else f" {STATES_ALONE}."
        raise ModelError(
            f"{location} is not {what}: model type {kind!r}, built as {_built(config) or 'unknown'}. "
            f"This command needs {needs}.{advice}"
        )


def refuse_other_heads(config: Any, location: str, task: ModelTask) -> None:
    """Refuse a classifier and the like for a task that predicts words: its head would be dropped, another made up.

    Raises:
        ModelError: Says what it is and what traces it.
    """
    built = _built(config)
    if not HEADS[task].words or built not in _OTHER_HEADS:
        return
    if built in _classes(CHOICE):
        own = "`decision-traces csqa_enc` traces it over questions, and "
    else:
        own = "tracing classifiers is not there yet; "
    alone = config.is_encoder_decoder and not _has_encoder_alone(config)
    advice = f"{own}{STATES_ALONE}" if not alone else "tracing it is not there yet"
    raise ModelError(f"{location} is a {built}, whose head would be dropped here: {advice}.")


def has_own_head(model: Any, config: Any, weights: Weights) -> bool:
    """Return whether a checkpoint holds all of a model that predicts words, its head included.

    A head that is the embedding itself is in every checkpoint of its kind: there, the class it was saved from counts.
    """
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and getattr(head, "weight", None) is getattr(words, "weight", None)
    return not weights.missing and not (tied and _built(config) in _classes(BARE))


def refuse_unfit(model: Any, config: Any, weights: Weights, location: str, task: ModelTask) -> None:
    """Refuse weights that are not those of the model that was loaded.

    A multiple-choice head alone may be new, which the caller reports; so may be a pooler of an encoder, which only
    reads the hidden states. What is there and not used may be left, but for a head in the place of the one asked for.

    Raises:
        ModelError: Names the weights.
    """
    body = [name for name in weights.missing if HEADS[task].words or _in_body(model, name)]
    advice = f" {STATES_ALONE}." if HEADS[task].words and not any(_in_body(model, name) for name in body) else ""
    if body:
        raise ModelError(
            f"{location} lacks {len(body)} of the model's weights ({', '.join(body[:3])}, ...). "
            f"They would be random numbers, and so would the predictions.{advice}"
        )
    if not HEADS[task].words:
        return
    if not has_own_head(model, config, weights):
        raise ModelError(
            f"{location} is a bare {_built(config)}, without a head that predicts words: {STATES_ALONE}. If its "
            f'embedding is its head, let its config.json say "architectures": ["{type(model).__name__}"].'
        )
    if not _built(config) and (foreign := _foreign(model, weights.unused)):
        raise ModelError(
            f"{location} has another head ({', '.join(foreign)}), which would be dropped here, and its config names no "
            f"architecture: {STATES_ALONE}."
        )


def _in_body(model: Any, parameter: str) -> bool:
    """Return whether a parameter belongs to what makes the hidden states; a pooler only reads them."""
    pooler = ".pooler." in f".{parameter}"
    return not pooler and (parameter.startswith(f"{model.base_model_prefix}.") or model.base_model is model)


def _foreign(model: nn.Module, unused: Collection[str]) -> list[str]:
    """Return the outermost modules of unused weights that the model has nothing of."""
    known = {name for module in (model, model.base_model) for name, _ in module.named_children()}  # type: ignore[union-attr]
    return sorted({name.split(".")[0] for name in unused} - known)


def described(model: nn.Module, unused: Collection[str], task: ModelTask) -> str:
    """Return unused weights in few words, by layer or by outermost module.

    Layers that are left out, and a head that is none of the model's, are a warning; a pooler, or what `encode` was
    asked to leave out, is not.
    """
    groups = Counter(_group(name.split(".")) for name in unused)
    shown = ", ".join(list(groups)[:4]) + (", ..." if len(groups) > 4 else "")
    layers = any(group.split(".")[-1].isdigit() for group in groups)
    warning = "WARNING: " if layers or (HEADS[task].words and _foreign(model, unused)) else ""
    return f"{warning}{len(unused)} weights of the checkpoint are not used ({shown}); the meta names all of them"


def _group(parts: list[str]) -> str:
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return parts[0] if number is None else ".".join(parts[: number + 1])
