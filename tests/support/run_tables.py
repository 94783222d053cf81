"""The token table of a small run, with predictions that are consistent."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from support.tiny_run import VOCAB, TinyRun


def token_table(run: TinyRun) -> pd.DataFrame:
    """Return the token table of a run, with consistent predictions."""
    rng = np.random.default_rng(run.seed + 1)
    rows = []
    for row, length in enumerate(run.spread):
        options = [
            _tokens(rng, int(n), run.n_positions if run.tokens_filled else int(n)) for n in np.atleast_1d(length)
        ]
        columns = options[0]
        if run.n_choices is not None:
            parts = [[0 if m else -1 for m in o["attention_mask"]] for o in options]
            columns = {k: [o[k] for o in options] for k in columns} | {"sequence_ids": parts}
        outcome = {} if run.n_choices is None else _choice(rng, run.n_choices)
        if run.task in {"next_token", "target"}:
            outcome = _next_token(rng, columns)
        elif run.task == "masked":
            outcome = _masked(rng, columns)
        if run.source_lengths is not None:
            # What was made is the decoder's; the plain names are those of what the encoder reads.
            target = {f"dec_{k}": v for k, v in columns.items() if k != "offset_mapping"}
            source = run.source_lengths[row]
            read = _tokens(rng, source, run.n_source if run.tokens_filled else source)
            columns = read | {"target_text": f"target number {row}"} | target
        rows.append({"example_id": f"tiny-validation-{row:06d}", "text": f"text number {row}", **columns, **outcome})
    return pd.DataFrame(rows)


def _tokens(rng: np.random.Generator, length: int, t: int) -> dict[str, Any]:
    ids = [int(i) for i in rng.integers(1, VOCAB, length)]
    return {
        "input_ids": ids + [0] * (t - length),
        "attention_mask": [1] * length + [0] * (t - length),
        "offset_mapping": [[i, i + 1] for i in range(length)] + [[0, 0]] * (t - length),
        "tokens": [f"t{i}" for i in ids] + ["<pad>"] * (t - length),
        "n_tokens": length,
        "truncated": False,
    }


def _next_token(rng: np.random.Generator, columns: Mapping[str, Any]) -> dict[str, Any]:
    position = max(columns["n_tokens"] - 2, -1)
    if position < 0:
        return {"next_pos": -1} | dict.fromkeys(_NEXT)
    logits = rng.normal(size=VOCAB) * 2
    probs = (np.exp(logits) / np.exp(logits).sum()).astype(np.float32)
    order, true = np.argsort(-logits), columns["input_ids"][position + 1]
    return {
        "next_pos": position,
        "next_true_id": true,
        "next_true_token": f"t{true}",
        "next_pred_id": int(order[0]),
        "next_pred_token": f"t{order[0]}",
        "next_correct": bool(order[0] == true),
        "next_true_prob": probs[true],
        "next_pred_prob": probs[order[0]],
        "next_entropy": np.float32(-(probs * np.log(probs)).sum()),
        "next_true_rank": int((logits > logits[true]).sum()) + 1,
        "next_margin": np.float32(logits[order[0]] - logits[order[1]]),
        "next_topk_ids": [int(i) for i in order[:3]],
        "next_topk_tokens": [f"t{i}" for i in order[:3]],
        "next_topk_probs": [float(p) for p in probs[order[:3]]],
    }


def _masked(rng: np.random.Generator, columns: dict[str, Any]) -> dict[str, Any]:
    places = [p for p in range(columns["n_tokens"]) if p % 2]
    logits = rng.normal(size=(len(places), VOCAB)) * 2
    probs = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype(np.float32)
    true, pred = [columns["input_ids"][p] for p in places], [int(i) for i in logits.argmax(-1)]
    columns["input_ids"] = [MASK if p in places else i for p, i in enumerate(columns["input_ids"])]
    each = list(zip(probs, logits, true, pred, strict=True))
    return {
        "masked_pos": places,
        "masked_true_ids": true,
        "masked_true_tokens": [f"t{i}" for i in true],
        "masked_pred_ids": pred,
        "masked_pred_tokens": [f"t{i}" for i in pred],
        "masked_true_probs": [float(p[t]) for p, _, t, _ in each],
        "masked_pred_probs": [float(p[g]) for p, _, _, g in each],
        "masked_entropies": [float(-(p * np.log(p)).sum()) for p, *_ in each],
        "masked_true_ranks": [int((x > x[t]).sum()) + 1 for _, x, t, _ in each],
        "masked_correct": [t == g for t, g in zip(true, pred, strict=True)],
    }


MASK = 0
_NEXT = (
    "next_true_id",
    "next_true_token",
    "next_pred_id",
    "next_pred_token",
    "next_correct",
    "next_true_prob",
    "next_pred_prob",
    "next_entropy",
    "next_true_rank",
    "next_margin",
    "next_topk_ids",
    "next_topk_tokens",
    "next_topk_probs",
)


def _choice(rng: np.random.Generator, n_choices: int) -> dict[str, Any]:
    logits, label = rng.normal(size=n_choices), int(rng.integers(n_choices))
    probs, letters = np.exp(logits) / np.exp(logits).sum(), [chr(65 + i) for i in range(n_choices)]
    pred = int(logits.argmax())
    return {
        "question": "which one?",
        "choice_texts": [f"choice {letter}" for letter in letters],
        "answerKey": letters[label],
        "label_idx": label,
        "pred_idx": pred,
        "pred_label": letters[pred],
        "is_correct": pred == label,
        "choice_labels": letters,
        "choice_logits": [float(x) for x in logits],
        "choice_probs": [float(x) for x in probs],
    }
