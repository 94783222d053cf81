"""How right answers differ from wrong ones, or any groups, in all that a run holds."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from decision_traces.analysis.comparison.answers import final_answers
from decision_traces.analysis.comparison.calibration import Calibration, calibrate
from decision_traces.analysis.comparison.correlation import Correlation, correlate
from decision_traces.analysis.comparison.groups import GroupComparison, compare_groups
from decision_traces.analysis.comparison.result import Comparison
from decision_traces.analysis.comparison.run_figures import CORRECT, RunFigures, run_figures
from decision_traces.analysis.options import CompareOptions
from decision_traces.analysis.probing.correctness import ProbeResult, probe_correctness
from decision_traces.analysis.probing.label import LabelProbe, probe_label
from decision_traces.analysis.probing.labels import Labels, labels_of
from decision_traces.analysis.progress import Counting
from decision_traces.analysis.writing import write_frame
from decision_traces.errors import NotCapturedError, SelectionError, TraceError, UsageError
from decision_traces.format.analyses import (
    BY_PROBE_TABLE,
    BY_TABLE,
    CALIBRATION_TABLE,
    COMPARISON_TABLE,
    HEADS_TABLE,
    PROBE_TABLE,
)
from decision_traces.store import TraceStore


def run(store: TraceStore, options: CompareOptions, counting: Counting, *, page: Path | None = None) -> Comparison:
    """Compare right answers with wrong ones, or by a column; the page draws nothing more.

    Raises:
        TraceError: There are no groups to compare; why a part is missing is named in the result instead.
    """
    if options.by is None:
        return _right_against_wrong(store, options, counting)
    return _by(store, labels_of(store, options.by), options, counting)


def write(result: Comparison, folder: Path) -> None:
    """Write the tables of a comparison."""
    if result.sections:
        frames = [c.to_frame().assign(section=name) for name, c in result.sections.items()]
        table = pd.concat(frames, ignore_index=True).astype(_axes_of(frames))
        write_frame(folder / (COMPARISON_TABLE if result.by is None else BY_TABLE), table)
    if result.heads is not None:
        write_frame(folder / HEADS_TABLE, result.heads.to_frame())
    if result.probe is not None:
        write_frame(folder / (PROBE_TABLE if result.by is None else BY_PROBE_TABLE), result.probe.to_frame())
    if result.calibration is not None:
        write_frame(folder / CALIBRATION_TABLE, result.calibration.to_frame())


def _right_against_wrong(store: TraceStore, options: CompareOptions, counting: Counting) -> Comparison:
    answers = final_answers(store)
    figures, left_out = _figures(store, options, counting)
    calibration: Calibration | None = None
    try:
        calibration = calibrate(answers.answer_prob, answers.correct)
    except TraceError as reason:
        left_out["calibration"] = str(reason)
    sections: dict[str, GroupComparison | Correlation] = {}
    for name, section in figures.sections.items():
        values = {n: v[answers.row] for n, v in section.figures.items() if n != CORRECT}
        sections[name] = compare_groups(
            values, answers.correct, axes=section.axes, n_boot=options.n_boot, seed=options.seed
        )
    probe = _probe(options, counting, left_out, partial(probe_correctness, store))
    title = "Right against wrong answers"
    return Comparison(title, None, sections, left_out, calibration, figures.heads, probe)


def _by(store: TraceStore, labels: Labels, options: CompareOptions, counting: Counting) -> Comparison:
    """Compare the classes of a column, or correlate with its numbers."""
    figures, left_out = _figures(store, options, counting)
    sections: dict[str, GroupComparison | Correlation] = {}
    for name, section in figures.sections.items():
        values = {n: v[labels.row] for n, v in section.figures.items()}
        axes, n_boot, seed = section.axes, options.n_boot, options.seed
        if not labels.classes:
            correlation = correlate(values, labels.value, axes=axes, n_boot=n_boot, seed=seed)
            sections[f"{name}, by {labels.name}"] = correlation
            continue
        for groups, inside in labels.contrasts():
            title = f"{name}: {groups[0]} against {groups[1]}"
            sections[title] = compare_groups(values, inside, axes=axes, groups=groups, n_boot=n_boot, seed=seed)
    probe = _probe(options, counting, left_out, partial(probe_label, store, labels))
    return Comparison(f"By {labels.name}", labels.name, sections, left_out, probe=probe)


def _figures(store: TraceStore, options: CompareOptions, counting: Counting) -> tuple[RunFigures, dict[str, str]]:
    """Return the figures of a run, and why others are missing."""
    figures = run_figures(store, counting, options.model_path, trust_remote_code=options.trust_remote_code)
    return figures, dict(figures.left_out)


def _probe(
    options: CompareOptions,
    counting: Counting,
    left_out: dict[str, str],
    probe: Callable[..., ProbeResult | LabelProbe],
) -> ProbeResult | LabelProbe | None:
    """Return what a probe finds; None, with the reason in `left_out`, where there is none."""
    with counting("probe") as progress:
        try:
            return probe(folds=options.folds, max_examples=options.max_examples, seed=options.seed, progress=progress)
        except (UsageError, NotCapturedError, SelectionError) as reason:
            left_out["probe"] = str(reason)
            return None


def _axes_of(frames: Sequence[pd.DataFrame]) -> dict[str, str]:
    """Return nullable integers for the axes that some sections have and others do not."""
    return {axis: "Int64" for axis in ("layer", "head") if any(axis in frame for frame in frames)}
