"""Encoders with a masked-language-modelling head: some tokens masked, and what the model says stood there."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from decision_traces.data.example import Example
from decision_traces.errors import ModelError
from decision_traces.extract.job import Job, Prepared, encode_texts
from decision_traces.extract.next_token import text_source
from decision_traces.extract.tables import field_columns, field_types, to_table, token_columns
from decision_traces.format.arrays import TOKENS_FILE
from decision_traces.model.load import LoadedModel
from decision_traces.outcomes.next_token import UNKNOWN, NextTokenOutcomes, next_token_outcomes
from decision_traces.tasks import MASKED_TOKEN
from decision_traces.tokens import Encoding, SpecialTokens, TokenBatch
from decision_traces.tracing.forward import all_logits

if TYPE_CHECKING:
    from decision_traces.extract.texts import TextConfig

DEFAULT_SHARE = 0.15
_COLUMNS: Mapping[str, str] = {
    "true_ids": "true_id",
    "pred_ids": "pred_id",
    "true_probs": "true_prob",
    "pred_probs": "pred_prob",
    "entropies": "entropy",
    "true_ranks": "true_rank",
    "correct": "correct",
}


_OF_TRUTH = frozenset({"true_ids", "true_probs", "true_ranks", "correct"})


def masked_job(config: "TextConfig") -> Job:
    """Return the job of an encoder with a masked-language-modelling head."""
    return Job(
        task=MASKED_TOKEN,
        model=config.model_source(),
        data=text_source(config),
        config=config,
        decisive=("mask_prob", "seed", "next_topk", "add_special_tokens"),
        workflow=partial(MaskedWorkflow, topk=config.next_topk),
        next_position=None,
        encode=partial(mask_some, share=config.mask_prob, seed=config.seed, special=config.add_special_tokens),
    )


def mask_some(
    loaded: LoadedModel,
    examples: Sequence[Example],
    limit: int | None,
    *,
    share: float | None,
    seed: int,
    special: SpecialTokens,
) -> list[Encoding]:
    """Tokenise texts and replace some tokens by the mask token; special tokens stay, masks of the texts' own too.

    Which tokens are masked depends on the seed and the example alone, not on how many examples there are. A text with
    a token has at least one masked where the share is above 0.

    Args:
        loaded: The model with its tokenizer.
        examples: The texts.
        limit: Most tokens of a text.
        share: Share of the tokens to mask; None for `DEFAULT_SHARE` in texts that have no mask of their own, and for
            none in those that have.
        seed: Of the choice.
        special: See `tokens.encode`.

    Raises:
        ModelError: The tokenizer has no mask token.
    """
    encodings = encode_texts(loaded, examples, limit, special)
    mask, never = loaded.tokenizer.mask_token_id, set(loaded.tokenizer.all_special_ids)
    if mask is None:
        if share == 0:
            return encodings
        raise ModelError("This tokenizer has no mask token; give --mask_prob 0 to trace the texts as they are.")
    return [
        _masked(encoding, int(mask), never, share, np.random.default_rng([seed, zlib.crc32(e.example_id.encode())]))
        for encoding, e in zip(encodings, examples, strict=True)
    ]


def _masked(
    encoding: Encoding, mask: int, never: set[int], share: float | None, random: np.random.Generator
) -> Encoding:
    own = encoding.ids == mask
    words = np.flatnonzero([int(i) not in never for i in encoding.ids])
    if share is None:
        share = 0.0 if own.any() else DEFAULT_SHARE
    chosen = words[random.random(len(words)) < share]
    if share and len(words) and not len(chosen):
        chosen = random.choice(words, 1)
    if not len(chosen) and not own.any():
        return encoding
    ids, truth = encoding.ids.copy(), encoding.ids.copy()
    ids[chosen], truth[own] = mask, UNKNOWN
    return replace(encoding, ids=ids, truth=truth)


class MaskedWorkflow:
    """Keeps what the model says at the masked tokens of every example of the block in work."""

    def __init__(self, prepared: Prepared, *, topk: int) -> None:
        self._prepared, self._topk = prepared, topk
        self._field_types = field_types(prepared.examples)
        self._rows: dict[int, tuple[np.ndarray, NextTokenOutcomes]] = {}

    def forward(self, loaded: LoadedModel, batch: TokenBatch, first_row: int) -> None:
        """Run the model and keep the outcome at every masked token."""
        logits = all_logits(loaded.model, batch, loaded.device, loaded.task)
        for i, row in enumerate(batch.rows):
            encoding = self._prepared.encodings[first_row + row]
            if encoding.truth is None:
                continue
            at = np.flatnonzero(encoding.ids != encoding.truth)
            if len(at):
                truth = torch.from_numpy(encoding.truth[at].astype(np.int64))
                self._rows[first_row + row] = at, next_token_outcomes(logits[i, at.tolist()], truth, self._topk)

    def tables(self, rows: range) -> Mapping[str, pa.Table]:
        """Return the rows of `tokens.parquet`."""
        prepared = self._prepared
        examples = prepared.examples[rows.start : rows.stop]
        encodings = prepared.encodings[rows.start : rows.stop]
        columns = token_columns(examples, encodings, prepared.loaded.tokenizer)
        columns |= self._outcome_columns(rows)
        extra = field_columns(examples, self._field_types)
        return {TOKENS_FILE: to_table(MASKED_TOKEN.columns, columns, extra)}

    def _outcome_columns(self, rows: range) -> dict[str, Any]:
        found = [self._rows.pop(row, None) for row in rows]
        columns: dict[str, Any] = {"masked_pos": [[] if f is None else f[0].tolist() for f in found]}
        for name, field in _COLUMNS.items():
            values = [[] if f is None else getattr(f[1], field).tolist() for f in found]
            columns[f"masked_{name}"] = _where_known(values, found) if name in _OF_TRUTH else values
        tokenizer: Any = self._prepared.loaded.tokenizer
        for which in ("true", "pred"):
            ids = columns[f"masked_{which}_ids"]
            texts = [[None if i is None else tokenizer.decode([i]) for i in row] for row in ids]
            columns[f"masked_{which}_tokens"] = texts
        return columns

    def conventions(self) -> Mapping[str, str]:
        """Return what the outcome columns mean."""
        return {
            "masked_pos": "positions of the mask token; input_ids are what the model read, text and offsets are as "
            "they were, and the outcome is what the model says stood there; what stands behind a mask of the text's "
            "own is not known, and null",
            "entropy": "nats",
        }

    def figures(self, tokens: pa.Table) -> dict[str, Any]:
        """Return the accuracy figures of the whole run for its meta; nll in nats."""
        all_of_them = tokens["masked_correct"].combine_chunks().flatten()
        correct = all_of_them.drop_null().to_numpy(zero_copy_only=False)
        probs = tokens["masked_true_probs"].combine_chunks().flatten().drop_null().to_numpy(zero_copy_only=False)
        counts = {"n_masked": len(correct), "n_own_masks": all_of_them.null_count}
        if len(correct) == 0:
            return counts
        nll = -np.log(np.maximum(probs, np.finfo(np.float32).tiny))
        return {**counts, "masked_accuracy": float(np.mean(correct)), "mean_masked_nll": float(nll.mean())}


def _where_known(values: list[list[Any]], found: Sequence[tuple[np.ndarray, NextTokenOutcomes] | None]) -> list[Any]:
    """Return null in place of what needs a truth that is not known."""
    truths = [[] if f is None else f[1].true_id.tolist() for f in found]
    return [
        [None if t == UNKNOWN else v for v, t in zip(row, truth, strict=True)]
        for row, truth in zip(values, truths, strict=True)
    ]
