"""Encoder-decoders: what the decoder says of each token of a target, while it attends to a text."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from decision_traces.data.example import TARGET_FIELD, Example
from decision_traces.data.targets import Targets, load_with_targets
from decision_traces.errors import ModelError, UsageError, first_line
from decision_traces.extract.job import Job, encode_texts
from decision_traces.extract.next_token import NextTokenWorkflow, text_source
from decision_traces.model.context import stated_limit
from decision_traces.model.load import LoadedModel
from decision_traces.tasks import SEQUENCE_TO_SEQUENCE
from decision_traces.tokens import Encoding, SpecialTokens, encode

if TYPE_CHECKING:
    from decision_traces.extract.texts import TextConfig


def target_job(config: "TextConfig") -> Job:
    """Return the job of an encoder-decoder."""
    longest = None if config.dec_max_len == "auto" else config.dec_max_len
    return Job(
        task=SEQUENCE_TO_SEQUENCE,
        model=config.model_source(),
        data=text_source(config),
        config=config,
        decisive=("next_topk", "all_positions", "add_special_tokens"),
        workflow=partial(NextTokenWorkflow, topk=config.next_topk, all_positions=config.all_positions),
        read=partial(load_with_targets, targets=Targets(config.targets_file, config.target_column)),
        encode=partial(encode_with_targets, longest=longest, special=config.add_special_tokens),
        n_target=longest,
    )


def encode_with_targets(
    loaded: LoadedModel, examples: Sequence[Example], limit: int | None, *, longest: int | None, special: SpecialTokens
) -> list[Encoding]:
    """Tokenise the texts for the encoder and the targets for the decoder.

    The decoder reads what it reads in training: its start token, and the target shifted by one. Its last token is
    thus the target's last but one (often the end token is the last). Without a target it reads its start token.

    Args:
        loaded: The model with its tokenizer.
        examples: The texts, with the field `target_text`.
        limit: Most tokens of a text.
        longest: Most tokens that the decoder reads; None for as many as it was built for.
        special: See `tokens.encode`.

    Raises:
        ModelError: The model does not say what its decoder starts with.
        UsageError: The decoder was not built for so many tokens.
    """
    context = _decoder_context(loaded)
    if longest is not None and context is not None and longest > context:
        raise UsageError(
            f"--dec_max_len {longest}: {type(loaded.model).__name__} was built for {context} tokens; "
            f"give {context} or less, or auto."
        )
    longest = context if longest is None else longest
    sources = encode_texts(loaded, examples, limit, special)
    texts = [e.fields[TARGET_FIELD] for e in examples]
    given = [str(text) for text in texts if text is not None]
    tokenizer: Any = loaded.tokenizer
    switch = getattr(tokenizer, "_switch_to_target_mode", None)
    if switch is not None:  # tokenizers of some translation models treat the target's language by itself
        switch()
    labels = iter(encode(tokenizer, given, None, special))
    if switch is not None:
        tokenizer._switch_to_input_mode()
    return [
        replace(source, target=_shifted(loaded, None if text is None else next(labels), longest))
        for source, text in zip(sources, texts, strict=True)
    ]


def _decoder_context(loaded: LoadedModel) -> int | None:
    """Return the most tokens that the decoder was built for; None where it states no limit."""
    config = getattr(loaded.config, "decoder", None) or loaded.config
    names = ("max_decoder_position_embeddings", "max_position_embeddings")
    return stated_limit(config, names) or loaded.context


def _shifted(loaded: LoadedModel, label: Encoding | None, longest: int | None) -> Encoding:
    """Return what the decoder reads to a target."""
    model: Any = loaded.model
    start = getattr(loaded.config, "decoder_start_token_id", None)
    start = loaded.config.bos_token_id if start is None else start
    if label is None or label.n_tokens == 0:
        if start is None:
            raise ModelError(f"{type(model).__name__} names no token that its decoder starts with.")
        return Encoding(np.array([start], np.int32), np.zeros((1, 2), np.int32), truncated=False)
    ids = torch.from_numpy(label.ids.astype(np.int64))[None].to(loaded.device)
    try:
        shifted = model.prepare_decoder_input_ids_from_labels(labels=ids)[0].cpu().numpy().astype(np.int32)
    except ValueError as error:
        name = type(model).__name__
        raise ModelError(f"{name} cannot say what its decoder reads to a target: {first_line(error)}") from error
    offsets = np.concatenate([np.zeros((1, 2), np.int32), label.offsets[:-1]])
    cut = longest is not None and len(shifted) > longest
    return Encoding(shifted[:longest], offsets[:longest], truncated=cut)
