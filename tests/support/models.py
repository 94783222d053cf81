"""Tiny decoders with random weights and a byte tokenizer, each a folder that loads like any other model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

N_LAYERS: Final = 3
N_HEADS: Final = 4
D_HEAD: Final = 8
D_MODEL: Final = 32
CONTEXT: Final = 96
MOST_PARAMETERS: Final = 200_000

SIZES: Final = {
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
}
_GROUPED: Final = {**SIZES, "num_key_value_heads": 2}
_GPT2: Final = {"n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_positions": CONTEXT}
_OPT: Final = {
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "ffn_dim": 48,
    "word_embed_proj_dim": D_MODEL,
    "max_position_embeddings": CONTEXT,
}
_NEO: Final = {
    "hidden_size": D_MODEL,
    "num_layers": N_LAYERS,
    "attention_types": [[["global", "local", "global"], 1]],
    "num_heads": N_HEADS,
    "window_size": 16,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
}
_FALCON: Final = {"hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS}

FAMILIES: Final[Mapping[str, Callable[..., Any]]] = {
    "gpt2": lambda **k: hf.GPT2Config(**{**_GPT2, **k}),
    "llama": lambda **k: hf.LlamaConfig(**{**_GROUPED, **k}),
    "qwen2": lambda **k: hf.Qwen2Config(**{**_GROUPED, **k}),
    "qwen3": lambda **k: hf.Qwen3Config(**{**_GROUPED, "head_dim": D_HEAD, **k}),
    "mistral": lambda **k: hf.MistralConfig(**{**_GROUPED, "sliding_window": 16, **k}),
    "gemma": lambda **k: hf.GemmaConfig(**{**_GROUPED, "head_dim": D_HEAD, **k}),
    "gemma2": lambda **k: hf.Gemma2Config(**{**_GROUPED, "head_dim": D_HEAD, "sliding_window": 16, **k}),
    "gemma3": lambda **k: hf.Gemma3TextConfig(**{**_GROUPED, "head_dim": D_HEAD, "sliding_window": 16, **k}),
    "opt": lambda **k: hf.OPTConfig(**{**_OPT, **k}),
    "opt_post_norm": lambda **k: hf.OPTConfig(**{**_OPT, "do_layer_norm_before": False, **k}),
    "gpt_neox": lambda **k: hf.GPTNeoXConfig(**{**SIZES, **k}),
    "gpt_neox_sequential": lambda **k: hf.GPTNeoXConfig(**{**SIZES, "use_parallel_residual": False, **k}),
    "phi": lambda **k: hf.PhiConfig(**{**SIZES, **k}),
    "cohere": lambda **k: hf.CohereConfig(**{**_GROUPED, **k}),
    "olmo2": lambda **k: hf.Olmo2Config(**{**_GROUPED, **k}),
    "gptj": lambda **k: hf.GPTJConfig(**{**_GPT2, "rotary_dim": 4, **k}),
    "gpt_neo": lambda **k: hf.GPTNeoConfig(**{**_NEO, **k}),
    "mpt": lambda **k: hf.MptConfig(**{"d_model": D_MODEL, "n_heads": N_HEADS, "n_layers": N_LAYERS, **k}),
    "falcon": lambda **k: hf.FalconConfig(**{**_FALCON, **k}),
    "bloom": lambda **k: hf.BloomConfig(**{"hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS, **k}),
    "granite": lambda **k: hf.GraniteConfig(**_GROUPED, residual_multiplier=0.5, **k),
}


def byte_tokenizer(*, bos: bool = False) -> Any:
    """Return a fast tokenizer with one token a byte, an end token `<e>` that also pads, and maybe a first `<s>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<e>", "<s>", *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<e>",
        pad_token="<e>",
        bos_token="<s>",
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_decoder(family: str, vocab_size: int = 258, **overrides: Any) -> Any:
    """Return a model of one of `FAMILIES` in eval mode, with weights large enough that all parts matter.

    Raises:
        AssertionError: The model is not tiny; a fixture checks its own size.
    """
    torch.manual_seed(7)
    config = FAMILIES[family](vocab_size=vocab_size, bos_token_id=1, eos_token_id=0, pad_token_id=0, **overrides)
    return checked_and_enlarged(hf.AutoModelForCausalLM.from_config(config).eval(), family)


def checked_and_enlarged(model: Any, family: str) -> Any:
    """Return the model with weights large enough that all parts matter.

    Raises:
        AssertionError: The model is not tiny; a fixture checks its own size.
    """
    size = sum(p.numel() for p in model.parameters())
    if size > MOST_PARAMETERS:
        raise AssertionError(f"the tiny {family} has {size} parameters")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


def save_tiny_decoder(folder: Path, family: str, *, bos: bool = False, **overrides: Any) -> Path:
    """Save a tiny decoder with its tokenizer and return the folder."""
    tiny_decoder(family, **overrides).save_pretrained(folder)
    byte_tokenizer(bos=bos).save_pretrained(folder)
    return folder
