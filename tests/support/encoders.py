"""Tiny encoders with a multiple-choice head and random weights, each a folder that loads like any other model."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from support.models import CONTEXT, D_MODEL, N_HEADS, N_LAYERS, SIZES, checked_and_enlarged

PAD: Final = 0
VOCABULARY: Final = 259
_SMALL: Final = {**SIZES, "embedding_size": 16}
_DISENTANGLED: Final = {
    "relative_attention": True,
    "position_buckets": 16,
    "max_relative_positions": -1,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
}
_DISTIL: Final = {
    "dim": D_MODEL,
    "n_layers": N_LAYERS,
    "n_heads": N_HEADS,
    "hidden_dim": 48,
    "max_position_embeddings": CONTEXT,
}
_MODERN: Final = {"local_attention": 16, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}

ENCODERS: Final[Mapping[str, Callable[..., Any]]] = {
    "bert": lambda **k: hf.BertConfig(**{**SIZES, **k}),
    "roberta": lambda **k: hf.RobertaConfig(**{**SIZES, **k}),
    "xlm_roberta": lambda **k: hf.XLMRobertaConfig(**{**SIZES, **k}),
    "distilbert": lambda **k: hf.DistilBertConfig(**{**_DISTIL, **k}),
    "albert": lambda **k: hf.AlbertConfig(**{**_SMALL, **k}),
    "electra": lambda **k: hf.ElectraConfig(**{**_SMALL, **k}),
    "deberta_v2": lambda **k: hf.DebertaV2Config(**{**SIZES, **k}),
    "deberta_v3": lambda **k: hf.DebertaV2Config(**{**SIZES, **_DISENTANGLED, **k}),
    "mpnet": lambda **k: hf.MPNetConfig(**{**SIZES, **k}),
    "modernbert": lambda **k: hf.ModernBertConfig(**{**SIZES, **_MODERN, **k}),
}


def pair_tokenizer(*, types: bool = True, mask: bool = False) -> Any:
    """Return a fast tokenizer with one token a byte that reads pairs as `<s> first <e> second <e>`.

    Args:
        types: Whether its models are told which text of a pair a token belongs to.
        mask: Whether it has a mask token, `<m>`, behind all others.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<p>", "<s>", "<e>", *alphabet, *(["<m>"] if mask else [])])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return _as_pairs(inner, types=types, **({"mask_token": "<m>"} if mask else {}))


def word_tokenizer(texts: Iterable[str]) -> Any:
    """Return a fast tokenizer with one token a word (or punctuation mark) of these texts, reading pairs as above."""
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})
    vocabulary = {token: i for i, token in enumerate(["<p>", "<s>", "<e>", "<u>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<u>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return _as_pairs(inner, types=True)


def _as_pairs(inner: Tokenizer, *, types: bool, **special: str) -> Any:
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A <e>", pair="<s> $A <e> $B:1 <e>:1", special_tokens=[("<s>", 1), ("<e>", 2)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<p>",
        cls_token="<s>",
        sep_token="<e>",
        **special,
        model_input_names=names,
        model_max_length=CONTEXT,
    )


def tiny_encoder(family: str, vocab_size: int = VOCABULARY, **overrides: Any) -> Any:
    """Return a multiple-choice model of one of `ENCODERS` in eval mode, with weights large enough to matter.

    Raises:
        AssertionError: The model is not tiny; a fixture checks its own size.
    """
    torch.manual_seed(7)
    config = ENCODERS[family](vocab_size=vocab_size, pad_token_id=PAD, **overrides)
    return checked_and_enlarged(hf.AutoModelForMultipleChoice.from_config(config).eval(), family)


def save_tiny_encoder(folder: Path, family: str, **overrides: Any) -> Path:
    """Save a tiny encoder with its tokenizer and return the folder."""
    tiny_encoder(family, **overrides).save_pretrained(folder)
    asked = getattr(ENCODERS[family](), "type_vocab_size", 1) or 1
    pair_tokenizer(types=asked > 1).save_pretrained(folder)
    return folder


def tiny_masked_encoder(family: str, **overrides: Any) -> Any:
    """Return a masked-language model of one of `ENCODERS`, as `tiny_encoder`; its last id is the mask token."""
    torch.manual_seed(7)
    config = ENCODERS[family](vocab_size=VOCABULARY + 1, pad_token_id=PAD, **overrides)
    return checked_and_enlarged(hf.AutoModelForMaskedLM.from_config(config).eval(), family)


def save_tiny_masked_encoder(folder: Path, family: str, *, mask: bool = True, **overrides: Any) -> Path:
    """Save a tiny masked-language model with its tokenizer (with a mask token, unless told not to)."""
    tiny_masked_encoder(family, **overrides).save_pretrained(folder)
    pair_tokenizer(types=False, mask=mask).save_pretrained(folder)
    return folder
