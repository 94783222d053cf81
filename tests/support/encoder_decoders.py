"""Tiny encoder-decoders with random weights, each a folder that loads like any other model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers as hf

from support.encoders import PAD, VOCABULARY, pair_tokenizer
from support.models import CONTEXT, D_HEAD, D_MODEL, N_HEADS, checked_and_enlarged

N_ENCODER_LAYERS: Final = 2
N_DECODER_LAYERS: Final = 3
END: Final = 2

_BART: Final = {
    "d_model": D_MODEL,
    "encoder_layers": N_ENCODER_LAYERS,
    "decoder_layers": N_DECODER_LAYERS,
    "encoder_attention_heads": N_HEADS,
    "decoder_attention_heads": N_HEADS,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": CONTEXT,
    "forced_eos_token_id": None,
}
_T5: Final = {
    "d_model": D_MODEL,
    "d_kv": D_HEAD,
    "d_ff": 48,
    "num_layers": N_ENCODER_LAYERS,
    "num_decoder_layers": N_DECODER_LAYERS,
    "num_heads": N_HEADS,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "initializer_factor": 0.5,  # T5 begins with larger weights than the others
}

ENCODER_DECODERS: Final[Mapping[str, Callable[..., Any]]] = {
    "t5": lambda **k: hf.T5Config(**{**_T5, "decoder_start_token_id": PAD, **k}),
    "bart": lambda **k: hf.BartConfig(**{**_BART, "decoder_start_token_id": END, **k}),
    "mbart": lambda **k: hf.MBartConfig(**{**_BART, **k}),
    "marian": lambda **k: hf.MarianConfig(**{**_BART, "decoder_start_token_id": PAD, **k}),
    "pegasus": lambda **k: hf.PegasusConfig(**{**_BART, "decoder_start_token_id": PAD, **k}),
}


def tiny_encoder_decoder(family: str, vocab_size: int = VOCABULARY, **overrides: Any) -> Any:
    """Return a model of one of `ENCODER_DECODERS` in eval mode, with weights large enough to matter.

    Raises:
        AssertionError: The model is not tiny; a fixture checks its own size.
    """
    torch.manual_seed(7)
    ids = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": END}
    config = ENCODER_DECODERS[family](vocab_size=vocab_size, **ids, **overrides)
    return checked_and_enlarged(hf.AutoModelForSeq2SeqLM.from_config(config).eval(), family)


def save_tiny_encoder_decoder(folder: Path, family: str, **overrides: Any) -> Path:
    """Save a tiny encoder-decoder with its tokenizer (texts as `<s> text <e>`) and return the folder."""
    tiny_encoder_decoder(family, **overrides).save_pretrained(folder)
    pair_tokenizer(types=False).save_pretrained(folder)
    return folder
