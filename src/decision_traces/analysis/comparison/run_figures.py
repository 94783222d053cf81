"""The figures of a run's examples, for comparisons: the answer, its depth, what heads look at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float

from decision_traces.analysis.attention.patterns import ATTENTION_FIGURES
from decision_traces.analysis.attention.statistics import ATTENTION_ARRAYS, HeadMeans, attention_statistics
from decision_traces.analysis.comparison.answers import FINAL_FIGURES, all_answers
from decision_traces.analysis.progress import Counting
from decision_traces.errors import TraceError, UsageError
from decision_traces.store import TraceStore

ANSWER, DEPTH, HEADS = "The final answer", "When it was decided", "Attention heads"
CORRECT: Final = "correct"
_STREAMS: Final = ("dec_hidden", "dec_res_pre_attn", "enc_mc_hidden")
_DEPTH_FIGURES: Final = ("stable_from", "flips")


@dataclass(frozen=True, slots=True)
class Section:
    """Figures of one kind.

    Attributes:
        figures: Name to values, (n, ...) for all examples of the run; NaN where an example has none.
        axes: Names of the axes behind the first.
    """

    figures: Mapping[str, Float[np.ndarray, "n ..."]]
    axes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunFigures:
    """Figures of a run; `left_out` has the reason why others are missing."""

    sections: dict[str, Section] = field(default_factory=dict)
    heads: HeadMeans | None = None
    left_out: dict[str, str] = field(default_factory=dict)


def run_figures(
    store: TraceStore, counting: Counting, model_path: Path | None = None, *, trust_remote_code: bool = False
) -> RunFigures:
    """Return the figures of a run's examples.

    Args:
        store: Any run.
        counting: Tells how far the statistics of attention are.
        model_path: Where the model is now, for the decision depth.
        trust_remote_code: Whether Python that the model brings along may run.
    """
    sections: dict[str, Section] = {}
    left_out: dict[str, str] = {}
    try:
        sections[ANSWER] = Section(_answers(store))
    except UsageError as reason:
        left_out["final answer"] = str(reason)
    try:
        sections[DEPTH] = Section(_depths(store, model_path, trust_remote_code=trust_remote_code))
    except TraceError as reason:  # whatever of run, model and lens stands in its way
        left_out["decision depth"] = str(reason)
    if not any(store.has(name) for name in ATTENTION_ARRAYS):
        left_out["attention heads"] = "This run did not capture `attn` (--capture attn)."
        return RunFigures(sections, None, left_out)
    try:
        with counting("attention") as progress:
            statistics = attention_statistics(store, progress=progress)
    except UsageError as reason:
        left_out["attention heads"] = str(reason)
        return RunFigures(sections, None, left_out)
    by_example = statistics.by_example()
    heads = {name: by_example.figure(name) for name in ATTENTION_FIGURES}
    sections[HEADS] = Section(heads, ("layer", "head"))
    return RunFigures(sections, statistics.per_head(), left_out)


def _answers(store: TraceStore) -> dict[str, np.ndarray]:
    answers = all_answers(store)
    return {name: answers[name].to_numpy(np.float64, na_value=np.nan) for name in (CORRECT, *FINAL_FIGURES)}


def _depths(store: TraceStore, model_path: Path | None, *, trust_remote_code: bool) -> dict[str, np.ndarray]:
    """Return decision depths; a model is loaded for them."""
    if not any(store.has(name) for name in _STREAMS):
        raise UsageError("This run captured neither `hidden` nor `resid` of what decides (--capture hidden).")
    # Here and not above: without hidden states there is no need of torch.
    from decision_traces.analysis.lens.run_depth import run_depth

    frame = run_depth(store, model_path, trust_remote_code=trust_remote_code).to_frame()
    rows = [store.row(example) for example in frame["example_id"]]
    figures = {name: np.full(store.n, np.nan) for name in _DEPTH_FIGURES}
    for name, values in figures.items():
        values[rows] = frame[name].to_numpy(np.float64)
    return figures
