"""The logit lens: what the model would predict if it ended after each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
import torch
from jaxtyping import Float32, Int

from decision_traces.analysis.decisions import decisions_of
from decision_traces.analysis.lens.unembedding import Unembedding
from decision_traces.analysis.lens.vocabulary import Vocabulary, in_order, in_strips
from decision_traces.analysis.progress import Progress
from decision_traces.analysis.results import LensTrajectories, TokenPath
from decision_traces.analysis.rounding import resolution
from decision_traces.analysis.states import Stage, parts, path_of, states_at
from decision_traces.errors import ModelError, UsageError
from decision_traces.memory import freed_memory_kept
from decision_traces.store import TraceStore
from decision_traces.tasks.decisions import Decisions, Kind

# Above the rounding of any type (which bfloat16 alone makes large), far below a norm or a scale left out.
_MOST_ERROR: Final = (0.05, 16)  # and so many times the resolution of the run
_MOST_RATIO: Final = (0.3, 64)  # of the logarithms, in nats
_SMALL_PROB: Final = 1e-3  # below it a ratio says little: logits far below the top are rounded as coarsely
Columns = dict[str, np.ndarray]


@freed_memory_kept()
def logit_lens(
    store: TraceStore,
    unembedding: Unembedding,
    stage: Stage = "hidden",
    *,
    top_k: int = 5,
    kind: Kind | None = None,
    progress: Progress | None = None,
) -> LensTrajectories:
    """Read every state of the residual stream at the position of the decision as if the model ended there.

    Method: nostalgebraist 2020, "interpreting GPT: the logit lens". `hidden[L]` is normed already and is not
    normed twice; the end of the model is therefore the model's own prediction, up to the rounding of the stored
    numbers, and how far it is off stands in `model_error`.

    Memory: the result, one layer of some examples (64 MB), and the logits of some rows (64 MB on a CPU, 256 MB on
    a GPU, a few times over) with their states at all depths.

    Args:
        store: A decoder run, or a masked one, that captured `hidden` or `resid`.
        unembedding: The model's final norm and output embedding.
        stage: Which states: "hidden", the way from the embedding to the end (also of runs that captured `resid`
            alone), or one of the residual stages, one state a layer.
        top_k: How many of the most probable tokens to keep at every depth.
        kind: Which decisions; the run's own where left out (`decisions.kinds_of`).
        progress: Called with (decisions done, of how many).

    Raises:
        NotCapturedError: The run did not capture the stage.
        UsageError: The run has no such decision at one position, or `top_k` is not positive.
        DataError: No example of the run has a prediction.
        ModelError: The end is not the model's own prediction, so that nothing before it can be trusted.
    """
    if top_k < 1:
        raise UsageError(f"top_k {top_k}: needs at least 1.")
    path, end = path_of(store, stage), path_of(store, "hidden")[-1]
    decisions = with_competitors(decisions_of(store, kind), store, unembedding)
    points = path if path[-1] == end else [*path, end]
    looked: list[Columns] = []
    rounding, wanted = resolution(store), max(2, top_k)
    for here, states in states_at(points, decisions, unembedding.rows_at_once):
        at_end = unembedding.logits(torch.from_numpy(states[-1]), normed=end.normed)
        last = in_strips(at_end, wanted, lambda one, _number, _strip: one)
        describe = partial(_statistics, last=last, tokens=_tokens(decisions, here), top_k=top_k)
        depths = []
        for point, state in zip(path, states, strict=False):
            known = point == end
            logits = at_end if known else unembedding.logits(torch.from_numpy(state), normed=point.normed)
            depths.append(in_order(in_strips(logits, wanted, describe)))
        columns = {name: np.stack([d[name] for d in depths], axis=1) for name in depths[0]}
        looked.append(columns | {"error": _model_error(decisions, here, last, rounding)})
        if progress is not None:
            progress(here.stop, len(decisions))
    joined = {name: np.concatenate([columns[name] for columns in looked]) for name in looked[0]}
    return _result(stage, decisions, joined)


def with_competitors(decisions: Decisions, store: TraceStore, unembedding: Unembedding) -> Decisions:
    """Return the decisions with every competitor known: those the table does not tell are read off the end.

    The table tells none where only one token was kept per prediction (`--next_topk 1`, or older tools).
    """
    missing = np.flatnonzero(decisions.competitor_id < 0)
    if len(missing) == 0:
        return decisions
    found, end = decisions.competitor_id.copy(), path_of(store, "hidden")[-1]
    for part in parts([end], decisions):
        states = torch.from_numpy(part.read(end))
        wanted = missing[(missing >= part.decisions.start) & (missing < part.decisions.stop)]
        for rows in unembedding.portions(len(wanted)):
            some = wanted[rows]
            logits = unembedding.logits(states[torch.from_numpy(some - part.decisions.start)], normed=end.normed)
            target = torch.from_numpy(decisions.target_id[some]).to(logits.device)
            # A copy: the logits are an inference tensor, which may not be written to.
            others = logits.scatter(1, target[:, None], -torch.inf)
            found[some] = others.argmax(1).cpu().numpy()
    return replace(decisions, competitor_id=found)


def _tokens(decisions: Decisions, here: slice) -> dict[str, Int[np.ndarray, " n"]]:
    ids = {"true": decisions.true_id, "competitor": decisions.competitor_id, "pred": decisions.pred_id}
    return {name: values[here].astype(np.int64) for name, values in ids.items()}


def _statistics(
    one: Vocabulary,
    number: int,
    strip: slice,
    *,
    last: Sequence[Vocabulary],
    tokens: Mapping[str, Int[np.ndarray, " n"]],
    top_k: int,
) -> Columns:
    """Describe one state of some rows.

    Args:
        one: What the lens says there.
        number: Which of the strips they are.
        strip: And which rows.
        last: What the model says at its end, by strip.
        tokens: The tokens to follow, of all rows; -1 where a row has none.
        top_k: How many of the most probable tokens to keep.
    """
    kept, top = one.top_ids[:, :top_k], one.logit(one.top_ids)
    columns = {
        "topk_ids": kept.astype(np.int32),
        "topk_probs": one.prob(kept),
        "entropy": one.entropy(),
        "margin": top[:, 0] - top[:, min(1, top.shape[1] - 1)],
        "kl_to_final": one.divergence_from(last[number]),
    }
    ids = np.stack([tokens[name][strip] for name in tokens], axis=1)
    there, at = ids >= 0, ids.clip(0)
    values = {"logit": one.logit(at), "prob": one.prob(at), "rank": _ranks(one, at).astype(np.int32)}
    for what, found in values.items():
        found[~there] = -1 if what == "rank" else np.nan
        columns |= {f"{name}_{what}": found[:, i] for i, name in enumerate(tokens)}
    return columns


def _ranks(one: Vocabulary, ids: Int[np.ndarray, "n m"]) -> Int[np.ndarray, "n m"]:
    """Return the rank of some tokens of each row, counting once what stands there twice.

    A rank is a pass over the whole vocabulary, and what a model predicts is nearly always the true token or its rival.
    """
    ranks = np.zeros_like(ids)
    for i in range(ids.shape[1]):
        for j in range(i):
            ranks[:, i] = np.where(ids[:, i] == ids[:, j], ranks[:, j], ranks[:, i])
        if not ranks[:, i].all():
            ranks[:, i] = one.rank(ids[:, i])
    return ranks


def _model_error(
    decisions: Decisions, here: slice, last: Sequence[Vocabulary], rounding: float
) -> Float32[np.ndarray, "n choice"]:
    """Return how far the lens at the end of the model is from what the run stored: `probability_error`."""
    ids = decisions.pred_id[here, None] if decisions.choices is None else decisions.choices.token_ids[here]
    by_strip = np.split(ids.astype(np.int64), np.cumsum([len(one.top_ids) for one in last])[:-1])
    pairs = zip(last, by_strip, strict=True)
    if decisions.choices is None:
        seen = np.concatenate([one.prob(some) for one, some in pairs])
        return probability_error(seen, decisions.pred_prob[here, None], rounding)
    logits = np.concatenate([one.logit(some) for one, some in pairs])
    return probability_error(
        torch.softmax(torch.from_numpy(logits), dim=1).numpy(), decisions.choices.probs[here], rounding
    )


def probability_error(
    seen: Float32[np.ndarray, "n choice"], stored: Float32[np.ndarray, "n choice"], rounding: float
) -> Float32[np.ndarray, "n choice"]:
    """Return the differences of probabilities; infinite where they are more than rounding.

    Rounding shows as a small difference of a large probability and as a small ratio of small ones: where a model is
    nowhere near sure, probabilities without its norm are all small as well, and only their ratio tells.

    Args:
        seen: By the lens.
        stored: By the run.
        rounding: See `rounding.resolution`.
    """
    difference = np.abs(seen - stored)
    floor = np.float32(_SMALL_PROB)
    ratio = np.abs(np.log(np.maximum(seen, floor)) - np.log(np.maximum(stored, floor)))
    wrong = (difference > _MOST_ERROR[0] + _MOST_ERROR[1] * rounding) | (
        ratio > _MOST_RATIO[0] + _MOST_RATIO[1] * rounding
    )
    return np.where(wrong, np.float32(np.inf), difference)


def checked_error(errors: Float32[np.ndarray, "n choice"]) -> float:
    """Return the largest of the errors that are known, NaN where none is.

    Raises:
        ModelError: One is more than rounding.
    """
    known = errors[~np.isnan(errors)]
    worst = float(known.max()) if len(known) else float("nan")
    if worst == np.inf:
        raise ModelError(
            f"The lens misses the model's own probabilities at the end of the model, in {int(np.isinf(known).sum())} "
            f"of {len(known)} cases by more than rounding explains: it is not the model of the run."
        )
    return worst


def _result(stage: Stage, decisions: Decisions, columns: Columns) -> LensTrajectories:
    def path(name: str) -> TokenPath:
        return TokenPath(columns[f"{name}_logit"], columns[f"{name}_prob"], columns[f"{name}_rank"])

    return LensTrajectories(
        stage=stage,
        example_id=decisions.example_id,
        correct=decisions.correct,
        true_id=decisions.true_id.astype(np.int32),
        pred_id=decisions.pred_id.astype(np.int32),
        competitor_id=decisions.competitor_id.astype(np.int32),
        true=path("true"),
        pred=path("pred"),
        competitor=path("competitor"),
        model_error=checked_error(columns["error"]),
        position=decisions.position,
        **{name: columns[name] for name in ("topk_ids", "topk_probs", "entropy", "margin", "kl_to_final")},
    )
