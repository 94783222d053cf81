"""How the result of each analysis is shown: tables and sentences for a terminal, pictures for its folder."""

from collections.abc import Iterator
from functools import singledispatch
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from decision_traces.analysis.attention.statistics import AttentionStatistics
from decision_traces.analysis.attribution.result import AttributionResult
from decision_traces.analysis.comparison.correlation import Correlation
from decision_traces.analysis.comparison.groups import GroupComparison
from decision_traces.analysis.comparison.result import Comparison
from decision_traces.analysis.lens.result import LensResult
from decision_traces.analysis.options import AttributionOptions
from decision_traces.analysis.probing.correctness import ProbeResult
from decision_traces.format.analyses import (
    ATTRIBUTION_PICTURE,
    BY_PICTURE,
    BY_PROBE_PICTURE,
    CALIBRATION_PICTURE,
    CHOICES_PICTURE,
    COMPARISON_PICTURE,
    HEADS_PICTURE,
    LENS_PICTURE,
    PROBE_PICTURE,
)
from decision_traces.store import TraceStore
from decision_traces.viz import comparison_tables
from decision_traces.viz.attributions import save_attribution
from decision_traces.viz.by_choice import save_lens_by_choice
from decision_traces.viz.comparisons import save_forest
from decision_traces.viz.head_maps import save_head_maps
from decision_traces.viz.probes import save_probe
from decision_traces.viz.reliability import save_reliability
from decision_traces.viz.style import run_title
from decision_traces.viz.tables import attribution_table, decision_table, head_table, lens_by_choice_table, lens_table
from decision_traces.viz.trajectories import save_trajectories

_HEADS_SHOWN: Final = 12
Shown = Table | str
"""A table, or a sentence."""


@singledispatch
def shown(result: Any, options: Any) -> Iterator[Shown]:
    """Yield what a terminal shows of a result, computed with some options.

    Raises:
        TypeError: It is no result of an analysis.
    """
    raise TypeError(f"{type(result).__name__} is no result of an analysis")


@singledispatch
def save_pictures(result: Any, store: TraceStore, folder: Path) -> None:
    """Draw a result of a run into a folder.

    Raises:
        TypeError: It is no result of an analysis.
    """
    raise TypeError(f"{type(result).__name__} is no result of an analysis")


@shown.register
def _(result: LensResult, _options: object) -> Iterator[Shown]:
    yield from result.notes
    if result.lenses:
        yield lens_table(result.lenses)
    if result.choices is not None:
        yield lens_by_choice_table(result.choices)
    certainty = result.choices or result.lenses[0]
    yield decision_table(certainty, result.depth)
    lens, error = ("lens", result.lenses[0].model_error) if result.lenses else ("lens by choice", certainty.model_error)
    yield f"At the end the {lens} is within {error:.2g} of every probability the run stored."


@save_pictures.register
def _(result: LensResult, store: TraceStore, folder: Path) -> None:
    if result.choices is not None:
        title = run_title("Lens by choice", store.meta)
        save_lens_by_choice(result.choices, folder / CHOICES_PICTURE, title)
    if result.lenses:
        title = f"{run_title('Logit lens', store.meta)}, {store.n} examples"
        save_trajectories(result.lenses[0], result.depth, folder / LENS_PICTURE, title)


@shown.register
def _(result: AttributionResult, options: AttributionOptions) -> Iterator[Shown]:
    leads = result.leads
    yield from result.notes
    yield attribution_table(leads)
    if leads.heads is not None:
        yield head_table(leads, options.top_k)
    by_head = "" if leads.head_error is None else f", heads to attention's share within {leads.head_error:.2g}"
    yield f"Parts sum to the model's logit difference within {leads.sum_error:.2g} logits{by_head}."
    if leads.logit_cap is not None:
        yield (
            f"The model caps its logits at {leads.logit_cap:g}, behind this sum: the lead before the cap is split up."
        )


@save_pictures.register
def _(result: AttributionResult, store: TraceStore, folder: Path) -> None:
    title = f"{run_title('Direct logit attribution', store.meta)}; true {result.of} against its competitor"
    title += "" if result.leads.logit_cap is None else ", before the cap"
    save_attribution(result.leads, folder / ATTRIBUTION_PICTURE, title)


@shown.register
def _(result: AttentionStatistics, _options: object) -> Iterator[Shown]:
    yield comparison_tables.head_table(result.per_head())


@save_pictures.register
def _(result: AttentionStatistics, store: TraceStore, folder: Path) -> None:
    save_head_maps(result.per_head(), folder / HEADS_PICTURE, run_title("What heads look at", store.meta))


@shown.register
def _(result: Comparison, _options: object) -> Iterator[Shown]:
    for name, comparison in result.sections.items():
        some, title = _strongest(comparison), _headed(name, comparison)
        if isinstance(some, GroupComparison):
            yield comparison_tables.comparison_table(some, title)
        else:
            yield comparison_tables.correlation_table(some, title)
    if isinstance(result.probe, ProbeResult):
        yield comparison_tables.probe_table(result.probe)
    elif result.probe is not None:
        yield comparison_tables.label_probe_table(result.probe)
    if result.calibration is not None:
        yield comparison_tables.calibration_table(result.calibration)
    yield from (f"No {what}: {reason}" for what, reason in result.left_out.items())


@save_pictures.register
def _(result: Comparison, store: TraceStore, folder: Path) -> None:
    meta, by = store.meta, result.by is not None
    shown_of = {_headed(name, c): _strongest(c) for name, c in result.sections.items()}
    groups = {name: c for name, c in shown_of.items() if isinstance(c, GroupComparison)}
    if groups:
        save_forest(groups, folder / (BY_PICTURE if by else COMPARISON_PICTURE), run_title(result.title, meta))
    if result.heads is not None:
        save_head_maps(result.heads, folder / HEADS_PICTURE, run_title("What heads look at", meta))
    if result.probe is not None:
        what = "that the answer will be right" if isinstance(result.probe, ProbeResult) else result.probe.label
        title = run_title(f"Can a layer tell {what}?", meta)
        save_probe(result.probe, folder / (BY_PROBE_PICTURE if by else PROBE_PICTURE), title)
    if result.calibration is not None:
        save_reliability(result.calibration, folder / CALIBRATION_PICTURE, run_title("Calibration", meta))


def _strongest(comparison: GroupComparison | Correlation) -> GroupComparison | Correlation:
    """Return what is shown: of many heads those that differ most."""
    return comparison.strongest(_HEADS_SHOWN) if comparison.axes else comparison


def _headed(name: str, comparison: GroupComparison | Correlation) -> str:
    if not comparison.axes:
        return name
    significant = int((comparison.q_value < 0.05).sum())
    what = "differences" if isinstance(comparison, GroupComparison) else "correlations"
    return f"{name}: the largest of {comparison.n_compared} {what}, {significant} of them with q < 0.05"
