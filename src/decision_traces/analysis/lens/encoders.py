"""The lens by choice of an encoder: its own head, applied to the states of every layer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float32

from decision_traces.analysis.lens.logit_lens import checked_error, probability_error
from decision_traces.analysis.lens.unembedding import load_run_model
from decision_traces.analysis.progress import Progress
from decision_traces.analysis.requirements import need_choice_states
from decision_traces.analysis.results import LensByChoice
from decision_traces.analysis.rounding import resolution
from decision_traces.format.arrays import UNEMBED_DIR
from decision_traces.format.stages import DEPTH, EXAMPLE
from decision_traces.model.choice_head import ChoiceHead, choice_head, holds_choice_head, load_choice_head
from decision_traces.model.discovery.probe import find_structure
from decision_traces.store import TraceStore

# Bytes of hidden states of one depth at a time.
_STEP_BYTES: Final = 64 << 20


def load_head(
    store: TraceStore, model_path: Path | None = None, device: str = "auto", *, trust_remote_code: bool = False
) -> ChoiceHead:
    """Load the head of the encoder a run was made with: from the run itself where it holds it, else the model's.

    Args:
        store: A multiple-choice run.
        model_path: Where the model is now, if it has moved since the run.
        device: "auto" (a GPU if there is one) or a torch device.
        trust_remote_code: Run Python that the model brings along; what the run recorded about it does not count.

    Raises:
        ModelError: The model cannot be loaded, or its weights are not those of the run.
    """
    folder = store.run_dir / UNEMBED_DIR
    if model_path is None and holds_choice_head(folder):
        return load_choice_head(folder)
    loaded = load_run_model(store, model_path, device, trust_remote_code=trust_remote_code)
    return choice_head(loaded, find_structure(loaded.model, loaded.vocab_size, loaded.task))


def encoder_lens_by_choice(store: TraceStore, head: ChoiceHead, *, progress: Progress | None = None) -> LensByChoice:
    """Score the choices at every depth as if the encoder ended there.

    Method: the logit lens (nostalgebraist 2020) with the classification head in place of the unembedding; the head
    sees all tokens of a choice, as it does at the end of the model.

    Args:
        store: A multiple-choice run that captured `hidden`.
        head: The model's own head; see `load_head`.
        progress: Called with (examples done, of how many).

    Raises:
        NotCapturedError: The run did not capture `hidden`.
        UsageError: The run is not about multiple choice, or does not keep all layers and positions.
        ModelError: The last depth does not give the probabilities that the run stored.
    """
    need_choice_states(store)
    parts = []
    for rows in _portions(store):
        parts.append(_scores(store, head, rows))
        if progress is not None:
            progress(rows.stop, store.n)
    logits, tokens = np.concatenate(parts), store.tokens
    probs = torch.softmax(torch.from_numpy(logits), dim=2).numpy()
    stored = np.stack(list(tokens["choice_probs"])).astype(np.float32)
    correct_idx = tokens["label_idx"].to_numpy(dtype=np.int32)
    pred_idx = tokens["pred_idx"].to_numpy(dtype=np.int32)
    return LensByChoice(
        example_id=tuple(tokens["example_id"]),
        labels=tuple(tuple(labels) for labels in tokens["choice_labels"]),
        logits=logits,
        probs=probs,
        correct_idx=correct_idx,
        pred_idx=pred_idx,
        is_correct=(correct_idx == pred_idx) & (correct_idx >= 0),
        model_error=checked_error(probability_error(probs[:, -1], stored, resolution(store))),
    )


def _portions(store: TraceStore) -> Iterator[slice]:
    array = store.array("enc_mc_hidden")
    step = max(1, _STEP_BYTES // max(1, array.row_nbytes // array.size(DEPTH)))
    yield from (slice(start, min(start + step, store.n)) for start in range(0, store.n, step))


def _scores(store: TraceStore, head: ChoiceHead, rows: slice) -> Float32[np.ndarray, "n depth choice"]:
    """Return the score of every choice of some examples at every depth."""
    array, n_tokens = store.array("enc_mc_hidden"), store.spans.n_tokens[rows]
    longest = max(1, int(n_tokens.max()))
    mask = torch.from_numpy((np.arange(longest) < n_tokens.reshape(-1, 1)).astype(np.int64))
    scores = []
    for depth in range(array.size(DEPTH)):
        picks: dict[str, int | slice] = {EXAMPLE: rows, DEPTH: depth}
        states = array.read(**picks)[:, :, :longest]
        flat = torch.from_numpy(np.ascontiguousarray(states)).flatten(0, 1)
        scores.append(head.scores(flat, mask, normed=depth == store.L).cpu().numpy().reshape(n_tokens.shape))
    return np.stack(scores, axis=1)
