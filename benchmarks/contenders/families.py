"""Where users of plain transformers (and of tools on top of it) find things, in the two families measured here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.contenders.protocol import UnavailableError


@dataclass(frozen=True, slots=True)
class Family:
    """Names of modules.

    Attributes:
        embed: What gives the state that the first layer reads.
        layers: The list of layers.
        attention: In a layer: attention.
        post_attn: In a layer: what reads the residual stream once attention has written.
        final_norm: The norm behind the last layer.
    """

    embed: str
    layers: str
    attention: str
    post_attn: str
    final_norm: str


FAMILIES: Final[Mapping[str, Family]] = {
    "gpt2": Family("transformer.drop", "transformer.h", "attn", "ln_2", "transformer.ln_f"),
    "llama": Family("model.embed_tokens", "model.layers", "self_attn", "post_attention_layernorm", "model.norm"),
}
"""By the config's `model_type`."""


def family_of(model: Any) -> Family:
    """Return where things lie in a model.

    Raises:
        UnavailableError: In another family they lie elsewhere.
    """
    found = FAMILIES.get(model.config.model_type)
    if found is None:
        raise UnavailableError(f"this benchmark knows the modules of {' and '.join(FAMILIES)} only")
    return found


def load(model_path: Path, attention: str) -> Any:
    """Load a decoder in float32 on the CPU."""
    options = {"dtype": torch.float32, "attn_implementation": attention, "trust_remote_code": False}
    return AutoModelForCausalLM.from_pretrained(model_path, **options).eval()


def predicted(model: Any, last_hidden: Tensor, positions: Tensor) -> Tensor:
    """Return the most probable next token of each row, (batch,), from the states behind the final norm."""
    states = last_hidden[torch.arange(len(positions)), positions]
    ids: Tensor = model.get_output_embeddings()(states).argmax(-1)
    return ids
