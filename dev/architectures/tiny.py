"""Every causal, masked, multiple-choice and sequence-to-sequence class of transformers, tiny, with random weights.

A config is built with its defaults and then again with its sizes replaced by name (`SIZES`), sub-configs included;
lists with one entry a layer are cut to the fewest layers that show every kind of layer. What names cannot tell stands
in `overrides.py`, by model type.
"""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
import transformers as hf
from transformers.models.auto import modeling_auto

from dev.architectures.overrides import (
    BY_KIND,
    BY_MODEL_TYPE,
    CONTEXT,
    EXPERTS,
    GAIN,
    HEADS,
    HIDDEN,
    INDEX_LISTS,
    LAYER_COUNTS,
    LAYERS,
    NOT_BUILDABLE,
    SIZED_WHERE_NONE,
    SIZES,
    VOCABULARY,
)

Kind = Literal["causal", "multiple_choice", "masked", "seq2seq"]

_MAPPINGS: Final[Mapping[str, str]] = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "multiple_choice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}
_CONFIG_ERRORS: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
MOST_PARAMETERS: Final = 8_000_000
MOST_LAYERS: Final = 8
FIRST_TEXT_ID: Final = 48
"""Ids below are the special tokens and placeholders; text is drawn from here up."""


class NotBuildable(Exception):
    """A class that cannot be built tiny; the message says why in one line."""


class NoSdpa(NotBuildable):
    """A class that says itself that it has no `sdpa` attention."""


@dataclass(frozen=True, slots=True)
class ModelClass:
    """One entry of one of transformers' mappings: a model type and the class that it names."""

    kind: Kind
    model_type: str
    name: str


def model_classes(kind: Kind | None = None) -> list[ModelClass]:
    """Return the classes of one kind, or of all, in the order of transformers' mappings."""
    found = []
    for one in get_args(Kind) if kind is None else (kind,):
        for model_type, names in getattr(modeling_auto, _MAPPINGS[one]).items():
            found.append(ModelClass(one, model_type, names if isinstance(names, str) else names[0]))
    return found


@contextmanager
def no_warnings() -> Iterator[None]:
    """Keep every logger's warnings quiet: configs with sizes of ours give many."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def is_encoder_decoder(model: Any) -> bool:
    """Return whether the model takes a source and a target, each its own ids."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


# --- configs


def _default(config_class: Any, model_type: str) -> Any:
    """Return the config with its defaults, or with the overrides where the defaults contradict each other."""
    try:
        return config_class()
    except _CONFIG_ERRORS:
        return config_class(**BY_MODEL_TYPE.get(model_type, {}))


def _stored(config: Any, name: str) -> Any:
    """Return what the config holds for all layers under the name or the name that stands for it."""
    return vars(config).get(config.attribute_map.get(name, name))


def _kept_layers(config: Any, names: set[str]) -> tuple[int, list[int]]:
    """Return how many layers the config has and which to keep so that every kind of layer remains."""
    count = next((_stored(config, n) for n in LAYER_COUNTS if n in names), 0)
    if not isinstance(count, int) or count < 2:
        return 0, []
    values = {name: _stored(config, name) for name in sorted(names)}
    lists = [v for n, v in values.items() if isinstance(v, list | tuple) and len(v) == count and n not in INDEX_LISTS]
    indices = [v for n, v in values.items() if n in INDEX_LISTS and v]
    kinds = [repr([[one[i] for one in lists], [i in one for one in indices]]) for i in range(count)]
    first = sorted({kind: i for i, kind in reversed(list(enumerate(kinds)))}.values())[:MOST_LAYERS]
    if len(first) == 1:
        return count, first * LAYERS
    cycle = [first[i % len(first)] for i in range(max(LAYERS, len(first)))]
    if cycle[-1] != first[-1] and kinds[-1] == kinds[first[-1]]:
        cycle.append(first[-1])  # some classes insist on the kind of their last layer
    return count, cycle


def _shrunk(config: Any, ids: dict[int, int]) -> Any:
    """Return a tiny config of the same class: sizes by name, sub-configs in turn, then the overrides of its type."""
    names = {field.name for field in dataclasses.fields(type(config))}
    tiny = {name: _shrunk(one, ids) for name, one in vars(config).items() if isinstance(one, hf.PreTrainedConfig)}
    for name in sorted(names):
        value = _stored(config, name)
        if name.endswith(("token_id", "token_index", "token_ids")):
            tiny[name] = _small_id(value, ids)
        elif name not in tiny and _has_size(name, value):
            tiny[name] = SIZES[name]
    tiny.update(_small_layers(config, names))
    if "kv_lora_rank" in names and "num_key_value_heads" in names:
        tiny["num_key_value_heads"] = HEADS  # latent attention has a key head for each query head
    if isinstance(rope := getattr(config, "rope_parameters", None), dict) and "rope_parameters" in names:
        tiny["rope_parameters"] = _small_rope(rope)
    for name, value in BY_MODEL_TYPE.get(config.model_type, {}).items():
        if isinstance(tiny.get(name), hf.PreTrainedConfig):
            for inner, one in value.items():
                setattr(tiny[name], inner, one)
        else:
            tiny[name] = value
    return type(config)(**tiny)


def _has_size(name: str, value: Any) -> bool:
    """Return whether the field is a size to replace; `None` is one where the class computes no value for it."""
    if value is None:
        return name in SIZED_WHERE_NONE
    return name in SIZES and isinstance(value, int | float) and not isinstance(value, bool)


def _small_layers(config: Any, names: set[str]) -> dict[str, Any]:
    """Return the number of layers and the lists over layers, cut to the layers that are kept."""
    count, kept = _kept_layers(config, names)
    small: dict[str, Any] = {}
    if not kept:
        return small
    for name in sorted(names):
        value = _stored(config, name)
        if name in INDEX_LISTS and value:
            small[name] = [new for new, old in enumerate(kept) if old in value]
        elif isinstance(value, list | tuple) and len(value) == count:
            small[name] = type(value)(value[i] for i in kept)
        elif name in LAYER_COUNTS and value == count:
            small[name] = len(kept)
    return small


def _small_id(value: Any, ids: dict[int, int]) -> Any:
    """Return the id as it is where it is small, else one below `FIRST_TEXT_ID`; the same for equal ids."""
    if isinstance(value, list | tuple):
        return type(value)(_small_id(one, ids) for one in value)
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if value < 0:
        return None
    return value if value < 8 else ids.setdefault(value, 8 + len(ids))


def _small_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return rotary parameters of any nesting for a head of `HIDDEN / heads` and positions up to `CONTEXT`."""
    half = int(16 * rope.get("partial_rotary_factor", 1.0)) // 2
    small = {name: _small_rope(one) if isinstance(one, Mapping) else one for name, one in rope.items()}
    if (section := rope.get("mrope_section")) is not None:
        rest = [max(1, one * half // sum(section)) for one in section[1:]]
        small["mrope_section"] = [half - sum(rest), *rest]
    if "original_max_position_embeddings" in rope:
        small["original_max_position_embeddings"] = CONTEXT // 2
    return small


def _model_class(which: ModelClass) -> Any:
    found = getattr(hf, which.name, None)
    if found is None:
        raise NotBuildable(f"transformers has no class {which.name}")
    return found


def tiny_config(which: ModelClass) -> Any:
    """Return a config for the class with a few small layers of every kind that the class has.

    Raises:
        NotBuildable: The config cannot be made small; the message says why.
    """
    if which.model_type in NOT_BUILDABLE:
        raise NotBuildable(NOT_BUILDABLE[which.model_type])
    try:
        if which.model_type == "encoder-decoder":
            return _pair_of_berts()
        config = _shrunk(_default(hf.CONFIG_MAPPING[which.model_type], which.model_type), {})
    except _CONFIG_ERRORS as error:
        raise NotBuildable(f"{which.model_type}: {_one_line(error)}") from error
    config = _own_config(config, _model_class(which).config_class)
    if which.kind == "causal" and not config.is_encoder_decoder and hasattr(config, "is_decoder"):
        config.is_decoder = True
    for name, value in BY_KIND.get((which.kind, which.model_type), {}).items():
        setattr(config, name, value)
    return config


def _own_config(config: Any, wanted: Any) -> Any:
    """Return the config, or the sub-config that is the class's own, as transformers' auto classes would."""
    if wanted is None or isinstance(config, wanted):
        return config
    return next((one for one in vars(config).values() if isinstance(one, wanted)), config)


def _pair_of_berts() -> Any:
    sizes = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
    }
    decoder = hf.BertConfig(**sizes, is_decoder=True, add_cross_attention=True)
    config = hf.EncoderDecoderConfig(encoder=hf.BertConfig(**sizes).to_dict(), decoder=decoder.to_dict())
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return config


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# --- models


def build_tiny(which: ModelClass, attention: Literal["eager", "sdpa"] = "eager", seed: int = 0) -> torch.nn.Module:
    """Return the class built tiny, in eval mode and float32; the weights depend on the seed, not on the attention.

    Raises:
        NoSdpa: `attention` is `sdpa` and the class says that it has none.
        NotBuildable: The class cannot be built tiny; the message says why.
    """
    config = tiny_config(which)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = _model_class(which)._from_config(config, attn_implementation=attention, dtype=torch.float32)
        except _CONFIG_ERRORS as error:
            if attention == "sdpa" and isinstance(error, ValueError) and "attn_implementation" in str(error):
                raise NoSdpa(_one_line(error)) from error
            raise NotBuildable(f"{which.name}: {_one_line(error)}") from error
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > MOST_PARAMETERS:
        raise NotBuildable(f"{which.name} still has {size} parameters")
    _randomise(model, seed)
    built: torch.nn.Module = model.float().eval()
    return built


def _randomise(model: Any, seed: int) -> None:
    """Give every weight a seeded value with which it matters and the activations stay of order one."""
    random = torch.Generator().manual_seed(seed)
    gain = GAIN.get(model.config.model_type, 1.2)
    with torch.no_grad():
        for owner, name, parameter in _parameters(model):
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.requires_grad or parameter.dim() < 2:  # a frozen matrix is a table of sines
                parameter.copy_(_value(owner, name, parameter, noise, gain))
        for name, buffer in model.named_buffers():
            if name.endswith(("correction_bias", "expert_bias")) and buffer.is_floating_point():
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=random))
            elif name.endswith("tid2eid"):  # the experts of each token; all of them the first one as built
                buffer.copy_((torch.arange(buffer.shape[0])[:, None] + torch.arange(buffer.shape[1])) % EXPERTS)


def _parameters(model: Any) -> Iterator[tuple[Any, str, torch.nn.Parameter]]:
    """Yield each parameter once with the module that owns it and its name there."""
    seen: set[int] = set()
    for owner in model.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield owner, name, parameter


def _value(owner: Any, name: str, now: torch.Tensor, noise: torch.Tensor, gain: float) -> torch.Tensor:
    """Return the new value of one parameter.

    A state-space model's rates stay in the range in which its recurrence is stable; a matrix gets the gain by its
    fan-in; a norm's weight stays near what it was, which is one in most classes and zero in some.
    """
    if name.endswith("A_log"):
        return noise.abs() + 0.1
    if name in ("D", "dt_bias", "dt_projs_bias"):
        return {"D": 1.0, "dt_bias": -1.0}.get(name, 0.0) + 0.3 * noise
    if now.dim() > 1:
        if isinstance(owner, torch.nn.Embedding):
            table = 0.5 * noise
            if owner.padding_idx is not None:
                table[owner.padding_idx] = 0  # as in every trained model: its gradient is never followed
            return table
        if isinstance(owner, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d):
            return noise / math.sqrt(now[0].numel())
        return gain * noise / math.sqrt(max(now.shape[-2:]))
    if bool((now == 1).all()):
        return 1.0 + 0.1 * noise
    if now.numel() == 1 and not name.endswith("bias"):
        return 0.5 + 0.1 * noise  # a gate or a scale
    return 0.2 * noise


# --- inputs


def _special_ids(config: Any) -> set[int]:
    """Return every id that a config or a sub-config gives a meaning."""
    ids: set[int] = set()
    for name, value in vars(config).items():
        if isinstance(value, hf.PreTrainedConfig):
            ids |= _special_ids(value)
        elif name.endswith(("token_id", "token_index", "token_ids", "pad_index", "unk_index", "mask_index")):
            ids |= {one for one in (value if isinstance(value, list | tuple) else [value]) if isinstance(one, int)}
    return ids


def _ragged(config: Any, lengths: tuple[int, ...], random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return right-padded ids, none of them special, and their mask."""
    special = _special_ids(config) | _special_ids(config.get_text_config())
    text = torch.tensor([i for i in range(FIRST_TEXT_ID, VOCABULARY) if i not in special])
    pad = getattr(config.get_text_config(), "pad_token_id", None)
    ids = torch.full((len(lengths), max(lengths)), pad if isinstance(pad, int) else 0)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = text[torch.randint(len(text), (length,), generator=random)]
        mask[row, :length] = 1
    return ids, mask


def tiny_inputs(
    which: ModelClass,
    model: Any,
    lengths: tuple[int, ...] = (9, 6, 2),
    seed: int = 1,
    target_lengths: tuple[int, ...] = (7, 3, 5),
) -> dict[str, torch.Tensor]:
    """Return the arguments with which the model runs on text alone: right-padded random ids and their mask.

    A multiple-choice class gets one choice a row; an encoder-decoder gets a target too. No id is a pad or a special
    token or the placeholder of an image or a sound.
    """
    random = torch.Generator().manual_seed(seed)
    ids, mask = _ragged(model.config, lengths, random)
    if which.kind == "multiple_choice":
        inputs = {"input_ids": ids[:, None], "attention_mask": mask[:, None]}
        if which.model_type == "longformer":  # it would look for three separators a row, and three rows hold none
            inputs["global_attention_mask"] = torch.zeros_like(inputs["input_ids"])
            inputs["global_attention_mask"][..., 0] = 1
        return inputs
    inputs = {"input_ids": ids, "attention_mask": mask}
    if which.kind == "seq2seq" and is_encoder_decoder(model):
        inputs["decoder_input_ids"], inputs["decoder_attention_mask"] = _ragged(model.config, target_lengths, random)
    return inputs
