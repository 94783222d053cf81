"""The logit lens: what the model would predict if it ended after each layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch
from jaxtyping import Float32, Int, Int64
from torch import Tensor

from decision_traces.analysis.decisions import decisions_of
from decision_traces.analysis.lens.look import Ask, Columns, look
from decision_traces.analysis.lens.unembedding import Unembedding
from decision_traces.analysis.lens.vocabulary import Vocabulary
from decision_traces.analysis.progress import Progress
from decision_traces.analysis.results import LensTrajectories, TokenPath
from decision_traces.analysis.rounding import resolution
from decision_traces.analysis.states import Stage, parts, path_of, states_at
from decision_traces.errors import ModelError, UsageError
from decision_traces.memory import freed_memory_kept
from decision_traces.store import TraceStore
from decision_traces.tasks.decisions import Decisions, Kind

# Above the rounding of any type (large only for bfloat16), far below a norm or a scale left out.
_MOST_ERROR: Final = (0.05, 16)  # and so many times the resolution of the run
_MOST_RATIO: Final = (0.3, 64)  # of the logarithms, in nats
_SMALL_PROB: Final = 1e-3  # below it a ratio means little: logits far below the top are rounded as coarsely
_FOLLOWED: Final = ("true_", "pred_", "competitor_")


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
    numbers, and how far it is off is in `model_error`.

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
    with_end = path[-1] == end
    points = path if with_end else [*path, end]
    table, rounding = DecisionTable(decisions, top_k), resolution(store)
    for here, states in states_at(points, decisions, unembedding.rows_at_once):
        followed = Followed(decisions, here, np.arange(here.stop - here.start), rounding)
        way = [(torch.from_numpy(state), point.normed) for state, point in zip(states, points, strict=True)]
        table.add(look(unembedding, way, max(2, top_k), followed.begin, with_end=with_end), followed)
        if progress is not None:
            progress(here.stop, len(decisions))
    return table.result(stage)


def with_competitors(decisions: Decisions, store: TraceStore, unembedding: Unembedding) -> Decisions:
    """Return the decisions with every competitor known: those that the table does not have are read off the end.

    The table has none where only one token was kept per prediction (`--next_topk 1`, or older tools).
    """
    missing = np.flatnonzero(decisions.competitor_id < 0)
    if len(missing) == 0:
        return decisions
    competitor, end = decisions.competitor_id.copy(), path_of(store, "hidden")[-1]
    for part in parts([end], decisions):
        states = torch.from_numpy(part.read(end))
        needed = missing[(missing >= part.decisions.start) & (missing < part.decisions.stop)]
        for rows in unembedding.portions(len(needed)):
            some = needed[rows]
            logits = unembedding.logits(states[torch.from_numpy(some - part.decisions.start)], normed=end.normed)
            target = torch.from_numpy(decisions.target_id[some]).to(logits.device)
            # A copy: the logits are an inference tensor, which may not be written to.
            others = logits.scatter(1, target[:, None], -torch.inf)
            competitor[some] = others.argmax(1).cpu().numpy()
    return replace(decisions, competitor_id=competitor)


@dataclass(slots=True)
class Followed:
    """Some decisions among the positions of a look, and the tokens that they are between.

    Attributes:
        decisions: All decisions.
        here: Which of them.
        picked: (m,) at which position of the look each is made, ascending.
        rounding: See `rounding.resolution`.
        error: (m, choice) how far the lens at the end is from what the run stored; known once the look has begun.
    """

    decisions: Decisions
    here: slice
    picked: Int64[np.ndarray, " m"]
    rounding: float
    error: Float32[np.ndarray, "m choice"] = field(init=False)

    def begin(self, _end: Tensor, last: Sequence[tuple[Vocabulary, slice]]) -> Ask:
        """Take the end of the model, and return what is asked at every depth."""
        self.error = self._model_error(last)
        return self.ask

    def ask(self, one: Vocabulary, strip: slice) -> Columns:
        """Return logit, probability and rank of every token that is followed; -1 and NaN where a decision has none."""
        mine, rows = self._within(strip)
        some, ids = one.pick(rows), np.stack([values[mine] for values in self._tokens().values()], axis=1)
        exists, at = ids >= 0, ids.clip(0)
        columns: Columns = {}
        values = {"logit": some.logit(at), "prob": some.prob(at), "rank": _ranks(some, at).astype(np.int32)}
        for quantity, numbers in values.items():
            numbers[~exists] = -1 if quantity == "rank" else np.nan
            columns |= {f"{name}_{quantity}": numbers[:, i] for i, name in enumerate(self._tokens())}
        return columns

    def _tokens(self) -> dict[str, Int64[np.ndarray, " m"]]:
        made = self.decisions
        ids = {"true": made.true_id, "pred": made.pred_id, "competitor": made.competitor_id}
        return {name: values[self.here].astype(np.int64) for name, values in ids.items()}

    def _within(self, strip: slice) -> tuple[slice, Int64[np.ndarray, " k"]]:
        """Return which of the decisions are made in a strip of positions, and in which of its rows."""
        first, last = np.searchsorted(self.picked, (strip.start, strip.stop))
        return slice(int(first), int(last)), self.picked[first:last] - strip.start

    def _model_error(self, last: Sequence[tuple[Vocabulary, slice]]) -> Float32[np.ndarray, "m choice"]:
        """Return how far the lens at the end of the model is from what the run stored: `probability_error`."""
        choices = self.decisions.choices
        ids = self.decisions.pred_id[:, None] if choices is None else choices.token_ids
        ids, by_strip = ids[self.here].astype(np.int64), []
        for one, strip in last:
            mine, rows = self._within(strip)
            some = one.pick(rows)
            by_strip.append(some.prob(ids[mine]) if choices is None else some.logit(ids[mine]))
        by_lens = np.concatenate(by_strip)
        if choices is None:
            return probability_error(by_lens, self.decisions.pred_prob[self.here, None], self.rounding)
        probs = torch.softmax(torch.from_numpy(by_lens), dim=1).numpy()
        return probability_error(probs, choices.probs[self.here], self.rounding)


@dataclass(frozen=True, slots=True)
class DecisionTable:
    """What looks have returned for decisions so far.

    Attributes:
        decisions: All of them; they come in order.
        top_k: How many of the most probable tokens are kept.
    """

    decisions: Decisions
    top_k: int
    _looked: list[Columns] = field(default_factory=list)

    def add(self, columns: Columns, made: Followed) -> None:
        """Add what a look returned for the decisions among its positions."""
        common = {name: columns[name][made.picked] for name in ("entropy", "margin", "kl")}
        top = {name: columns[name][made.picked, :, : self.top_k] for name in ("top_ids", "top_probs")}
        columns_followed = {name: values for name, values in columns.items() if name.startswith(_FOLLOWED)}
        self._looked.append(common | top | columns_followed | {"error": made.error})

    def result(self, stage: Stage) -> LensTrajectories:
        """Return all of it.

        Raises:
            ModelError: The end is not the model's own prediction.
        """
        columns = {name: np.concatenate([part[name] for part in self._looked]) for name in self._looked[0]}

        def path(name: str) -> TokenPath:
            return TokenPath(columns[f"{name}_logit"], columns[f"{name}_prob"], columns[f"{name}_rank"])

        made = self.decisions
        return LensTrajectories(
            stage=stage,
            example_id=made.example_id,
            correct=made.correct,
            true_id=made.true_id.astype(np.int32),
            pred_id=made.pred_id.astype(np.int32),
            competitor_id=made.competitor_id.astype(np.int32),
            true=path("true"),
            pred=path("pred"),
            competitor=path("competitor"),
            topk_ids=columns["top_ids"],
            topk_probs=columns["top_probs"],
            entropy=columns["entropy"],
            margin=columns["margin"],
            kl_to_final=columns["kl"],
            model_error=checked_error(columns["error"]),
            position=made.position,
        )


def _ranks(one: Vocabulary, ids: Int[np.ndarray, "n m"]) -> Int[np.ndarray, "n m"]:
    """Return the rank of some tokens of each row, counting repeated ids once.

    A rank is a pass over the whole vocabulary, and the prediction is nearly always the true token or its competitor.
    """
    ranks = np.zeros_like(ids)
    for i in range(ids.shape[1]):
        for j in range(i):
            ranks[:, i] = np.where(ids[:, i] == ids[:, j], ranks[:, j], ranks[:, i])
        if not ranks[:, i].all():
            ranks[:, i] = one.rank(ids[:, i])
    return ranks


def probability_error(
    by_lens: Float32[np.ndarray, "n choice"], stored: Float32[np.ndarray, "n choice"], rounding: float
) -> Float32[np.ndarray, "n choice"]:
    """Return the differences of probabilities; infinite where they are more than rounding.

    Rounding shows as a small difference of a large probability and as a small ratio of small ones: where a model is
    nowhere near sure, probabilities without its norm are all small as well, and only their ratio shows it.

    Args:
        by_lens: By the lens.
        stored: By the run.
        rounding: See `rounding.resolution`.
    """
    difference = np.abs(by_lens - stored)
    floor = np.float32(_SMALL_PROB)
    ratio = np.abs(np.log(np.maximum(by_lens, floor)) - np.log(np.maximum(stored, floor)))
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
