"""The lens by choice: how far each answer to a multiple-choice question is ahead, layer by layer."""

import numpy as np
import torch

from decision_traces.analysis.decisions import decisions_of
from decision_traces.analysis.lens.logit_lens import checked_error, probability_error
from decision_traces.analysis.lens.unembedding import Unembedding, as_numpy
from decision_traces.analysis.progress import Progress
from decision_traces.analysis.results import LensByChoice
from decision_traces.analysis.rounding import resolution
from decision_traces.analysis.states import parts, path_of
from decision_traces.errors import UsageError
from decision_traces.store import TraceStore


def lens_by_choice(store: TraceStore, unembedding: Unembedding, *, progress: Progress | None = None) -> LensByChoice:
    """Read at every depth how far each answer is ahead, as if the model ended there.

    Method: the logit lens (nostalgebraist 2020) on the tokens of the answers only; probabilities are the softmax
    over these.

    Args:
        store: A decoder run over multiple-choice questions that captured `hidden` or `resid`.
        unembedding: The model's final norm and output embedding.
        progress: Called with (examples done, of how many).

    Raises:
        NotCapturedError: The run captured neither `hidden` nor `resid`.
        UsageError: The run is not about multiple-choice questions.
        ModelError: The last depth does not give the probabilities that the run stored.
    """
    decisions = decisions_of(store)
    choices = decisions.choices
    if choices is None:
        raise UsageError(f"{store.run_dir} has no answers to choose from: it predicts next tokens.")
    path, looked = path_of(store, "hidden"), []
    for part in parts(path, decisions):
        ids = torch.from_numpy(choices.token_ids[part.decisions])
        states = ((torch.from_numpy(part.read(point)), point.normed) for point in path)
        looked.append(np.stack([as_numpy(unembedding.token_logits(s, ids, normed=n)) for s, n in states], axis=1))
        if progress is not None:
            progress(part.rows.stop, store.n)
    logits = np.concatenate(looked)
    probs = torch.softmax(torch.from_numpy(logits), dim=2).numpy()
    return LensByChoice(
        example_id=decisions.example_id,
        labels=choices.labels,
        logits=logits,
        probs=probs,
        correct_idx=choices.correct_idx.astype(np.int32),
        pred_idx=choices.pred_idx.astype(np.int32),
        is_correct=decisions.correct,
        model_error=checked_error(probability_error(probs[:, -1], choices.probs, resolution(store))),
    )
