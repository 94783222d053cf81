"""Any texts through any model: decoders, encoders, encoder-decoders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from decision_traces.data.example import TARGET_FIELD, Example
from decision_traces.data.registry import DataSource
from decision_traces.data.targets import Targets, load_with_targets
from decision_traces.errors import ModelError, UsageError, first_line
from decision_traces.extract.job import Job, Prepared, encode_texts, last_known
from decision_traces.extract.masked import MaskedWorkflow, mask_some
from decision_traces.extract.next_token import NextTokenConfig, NextTokenWorkflow, next_token_job
from decision_traces.extract.progress import Progress, Silent
from decision_traces.extract.run import run_job
from decision_traces.extract.tables import field_columns, field_types, to_table, token_columns
from decision_traces.format.arrays import TOKENS_FILE, Task
from decision_traces.model.context import stated_limit
from decision_traces.model.load import DEMO_MODEL, LoadedModel, choose_task
from decision_traces.tasks import ENCODE
from decision_traces.tokens import Encoding, SpecialTokens, TokenBatch, encode
from decision_traces.tracing.self_check.evidence import logits_of


@dataclass(frozen=True, kw_only=True)
class TextConfig(NextTokenConfig):
    """Trace any model over texts: a decoder, an encoder, an encoder-decoder."""

    task: Literal["auto", "causal", "masked", "encode", "seq2seq"] = "auto"
    """What the model is for; auto takes the task whose head the checkpoint has."""
    mask_prob: float | None = None
    """masked: share of the tokens that are replaced by the mask token (seeded); 0 for none. Default: 0.15 in texts
    without a mask of their own, 0 in others."""
    targets_file: Path | None = None
    """seq2seq: what the decoder is to say, a row a text: .txt, or .jsonl, .csv, .parquet with a column target."""
    target_column: str | None = None
    """seq2seq: the column of the data that holds it."""
    dec_max_len: int | Literal["auto"] = "auto"
    """seq2seq: T of the decoder; longer targets are cut. auto fits the longest, up to the decoder's context."""


def extract_texts(config: TextConfig, progress: Progress | None = None) -> Path:
    """Trace a model over texts and return the run's folder.

    Args:
        config: The same options as on the command line.
        progress: Who is told how far it is; nobody by default.

    Raises:
        TraceError: One of its children; see `errors`.
    """
    return run_job(text_job(config), progress or Silent())


def text_job(config: TextConfig) -> Job:
    """Return the job for the kind of model that the flags ask for, or that the checkpoint is."""
    _check(config)
    task = _task(config)
    if task == "causal":
        _refuse(config, "a decoder", ("targets_file", "target_column", "dec_max_len", "mask_prob"))
        return next_token_job(config)
    if task == "seq2seq":
        _refuse(config, "an encoder-decoder", ("mask_prob",))
        return _target_job(config)
    _refuse(config, "an encoder", ("targets_file", "target_column", "dec_max_len", "all_positions"))
    if task == "encode":
        _refuse(config, "an encoder without a masked-language-modelling head", ("mask_prob",))
    return _masked_job(config) if task == "masked" else _encode_job(config)


def _task(config: TextConfig) -> Task:
    asked = config.model_source()
    if config.task != "auto":
        return config.task
    return "causal" if asked.model == DEMO_MODEL and asked.model_path is None else choose_task(asked)


def _check(config: TextConfig) -> None:
    if config.mask_prob is not None and not 0 <= config.mask_prob < 1:
        raise UsageError(f"--mask_prob {config.mask_prob}: needs a share from 0 to below 1.")
    if config.dec_max_len != "auto" and config.dec_max_len < 1:
        raise UsageError(f"--dec_max_len {config.dec_max_len}: needs at least 1, or auto.")
    if config.next_topk < 1:
        raise UsageError(f"--next_topk {config.next_topk}: needs at least 1.")


def _refuse(config: TextConfig, what: str, flags: Sequence[str]) -> None:
    """Refuse flags that mean nothing for this kind of model."""
    defaults = {"dec_max_len": "auto", "all_positions": False}
    given = [f"--{name}" for name in flags if getattr(config, name) != defaults.get(name)]
    if given:
        raise UsageError(f"{', '.join(given)}: means nothing for {what}.")


def _source(config: TextConfig) -> DataSource:
    return DataSource(
        config.dataset, config.split, config.data_dir, config.text_file, config.limit, config.skip_headings
    )


def _job(config: TextConfig, **own: Any) -> Job:
    """Return a job with what all of them have from the flags, and its own."""
    return Job(
        model=config.model_source(),
        data=_source(config),
        config=config,
        **own,
    )


def _masked_job(config: TextConfig) -> Job:
    return _job(
        config,
        objective="masked",
        kind="masked",
        decisive=("mask_prob", "seed", "next_topk", "add_special_tokens"),
        workflow=partial(MaskedWorkflow, topk=config.next_topk),
        task="masked",
        prefixes=("enc",),
        next_position=None,
        encode=partial(mask_some, share=config.mask_prob, seed=config.seed, special=config.add_special_tokens),
    )


def _encode_job(config: TextConfig) -> Job:
    return _job(
        config,
        objective="encode",
        kind="encode",
        decisive=("add_special_tokens",),
        workflow=EncodeWorkflow,
        encode=partial(encode_texts, special=config.add_special_tokens),
        task="encode",
        prefixes=("enc",),
        next_position=None,
    )


def _target_job(config: TextConfig) -> Job:
    targets = Targets(config.targets_file, config.target_column)
    longest = None if config.dec_max_len == "auto" else config.dec_max_len
    return _job(
        config,
        objective="target",
        kind="seq2seq",
        decisive=("next_topk", "all_positions", "add_special_tokens"),
        workflow=partial(NextTokenWorkflow, topk=config.next_topk, all_positions=config.all_positions),
        task="seq2seq",
        prefixes=("enc", "dec"),
        next_position=last_known,
        read=partial(load_with_targets, targets=targets),
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


class EncodeWorkflow:
    """Keeps nothing but the tokens: an encoder without a head predicts nothing."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared, self._field_types = prepared, field_types(prepared.examples)

    def forward(self, loaded: LoadedModel, batch: TokenBatch, first_row: int) -> None:
        """Run the model."""
        logits_of(loaded, batch)

    def tables(self, rows: range) -> Mapping[str, pa.Table]:
        """Return the rows of `tokens.parquet`."""
        prepared = self._prepared
        examples = prepared.examples[rows.start : rows.stop]
        encodings = prepared.encodings[rows.start : rows.stop]
        columns = token_columns(examples, encodings, prepared.loaded.tokenizer)
        extra = field_columns(examples, self._field_types)
        return {TOKENS_FILE: to_table(ENCODE.columns, columns, extra)}

    def conventions(self) -> Mapping[str, str]:
        """Return nothing: there are no outcome columns."""
        return {}

    def figures(self, tokens: pa.Table) -> dict[str, Any]:
        """Return nothing: there are no outcomes."""
        return {}
