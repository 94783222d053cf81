"""`decision-traces compare`: how right answers differ from wrong ones, or any groups, in all that a run holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Final, NoReturn

import pandas as pd
import pyarrow as pa
import tyro
from rich.console import Console

from decision_traces.analysis.attention.statistics import HeadMeans
from decision_traces.analysis.comparison.answers import final_answers
from decision_traces.analysis.comparison.calibration import Calibration, calibrate
from decision_traces.analysis.comparison.correlation import Correlation, correlate
from decision_traces.analysis.comparison.groups import GroupComparison, compare_groups
from decision_traces.analysis.comparison.run_figures import CORRECT, RunFigures, run_figures
from decision_traces.analysis.probing.correctness import ProbeResult, probe_correctness
from decision_traces.analysis.probing.label import LabelProbe, probe_label
from decision_traces.analysis.probing.labels import Labels, labels_of
from decision_traces.cli._app import make_console, run_command
from decision_traces.cli._counting import counting
from decision_traces.cli._written import kept_in_run
from decision_traces.errors import NotCapturedError, SelectionError, TraceError, UsageError
from decision_traces.store import TraceStore, doubts, write_table
from decision_traces.viz.comparison_tables import (
    calibration_table,
    comparison_table,
    correlation_table,
    label_probe_table,
    probe_table,
)
from decision_traces.viz.comparisons import save_forest
from decision_traces.viz.head_maps import save_head_maps
from decision_traces.viz.probes import save_probe
from decision_traces.viz.reliability import save_reliability
from decision_traces.viz.style import run_title

_HEADS_SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class CompareCommand:
    """Compare right with wrong answers: certainty, attention, decision depth, a probe per layer, calibration.

    Attributes:
        run: The run folder.
        by: Compare by this column of tokens.parquet instead: its classes (two with one another, of more each with the
            rest), or how all that goes with its numbers.
        seed: Of bootstrap draws, folds, subsample and shuffles.
        n_boot: Bootstrap draws.
        folds: Of the probe's cross-validation.
        max_examples: Let the probe use no more examples than these.
        model_path: Where the model lies now, for the decision depth.
        trust_remote_code: Run Python that the model brings along; only for models of people you trust.
        out: Keep the results in this folder instead of the run; a run that can only be read needs it.
        quiet: Print nothing; the files are written.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    by: str | None = None
    seed: int = 0
    n_boot: int = 2000
    folds: int = 5
    max_examples: int | None = None
    model_path: Path | None = None
    trust_remote_code: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    out: Path | None = None
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


@dataclass(slots=True)
class _Findings:
    """What was found; `left_out` says why the rest could not be."""

    title: str
    sections: dict[str, GroupComparison | Correlation] = field(default_factory=dict)
    calibration: Calibration | None = None
    heads: HeadMeans | None = None
    probe: ProbeResult | LabelProbe | None = None
    left_out: dict[str, str] = field(default_factory=dict)


def run(args: CompareCommand) -> int:
    """Compare, print the tables, and put tables and pictures into the run."""
    console, store = make_console(), TraceStore(args.run, results=args.out)
    console.quiet = args.quiet
    _check(args)
    labels = None if args.by is None else labels_of(store, args.by)
    with kept_in_run(store, "compare" if labels is None else "compare_by", args, console) as folder:
        found = _right_against_wrong(store, args) if labels is None else _by(store, labels, args)
        _write(found, store, folder, "" if labels is None else "_by")
        _print(found, console)
        if said := doubts(store.about):
            console.print(said, style="red", soft_wrap=True)
    return 0


def _check(args: CompareCommand) -> None:
    least = {
        "--n_boot": (args.n_boot, 1),
        "--folds": (args.folds, 2),
        "--max_examples": (args.max_examples, 1),
        "--seed": (args.seed, 0),
    }
    for flag, (value, smallest) in least.items():
        if value is not None and value < smallest:
            raise UsageError(f"{flag} {value}: needs at least {smallest}.")


def _right_against_wrong(store: TraceStore, args: CompareCommand) -> _Findings:
    answers = final_answers(store)
    figures = _figures(store, args)
    found = _Findings("Right against wrong answers", heads=figures.heads, left_out=figures.left_out)
    try:
        found.calibration = calibrate(answers.answer_prob, answers.correct)
    except TraceError as reason:
        found.left_out["calibration"] = str(reason)
    for name, section in figures.sections.items():
        values = {n: v[answers.row] for n, v in section.figures.items() if n != CORRECT}
        found.sections[name] = compare_groups(
            values, answers.correct, axes=section.axes, n_boot=args.n_boot, seed=args.seed
        )
    _add_probe(found, args, partial(probe_correctness, store))
    return found


def _by(store: TraceStore, labels: Labels, args: CompareCommand) -> _Findings:
    """Compare the classes of a column, or correlate with its numbers."""
    figures = _figures(store, args)
    found = _Findings(f"By {labels.name}", left_out=figures.left_out)
    for name, section in figures.sections.items():
        values = {n: v[labels.row] for n, v in section.figures.items()}
        compared = partial(compare_groups, values, axes=section.axes, n_boot=args.n_boot, seed=args.seed)
        if not labels.classes:
            title = f"{name}, by {labels.name}"
            found.sections[title] = correlate(
                values, labels.value, axes=section.axes, n_boot=args.n_boot, seed=args.seed
            )
            continue
        for groups, inside in labels.contrasts():
            title = f"{name}: {groups[0]} against {groups[1]}"
            found.sections[title] = compared(inside, groups=groups)
    _add_probe(found, args, partial(probe_label, store, labels))
    return found


def _figures(store: TraceStore, args: CompareCommand) -> RunFigures:
    counted = partial(counting, make_console(stderr=True), quiet=args.quiet)
    return run_figures(store, counted, args.model_path, trust_remote_code=args.trust_remote_code)


def _add_probe(found: _Findings, args: CompareCommand, probe: Callable[..., ProbeResult | LabelProbe]) -> None:
    with counting(make_console(stderr=True), "probe", quiet=args.quiet) as progress:
        try:
            found.probe = probe(folds=args.folds, max_examples=args.max_examples, seed=args.seed, progress=progress)
        except (UsageError, NotCapturedError, SelectionError) as reason:
            found.left_out["probe"] = str(reason)


def _write(found: _Findings, store: TraceStore, folder: Path, kind: str) -> None:
    """Write what was found; `kind` is what the names of the files end with."""
    meta, tables = store.meta, {}
    shown = {_headed(name, c): _shown(c) for name, c in found.sections.items()}
    groups = {name: c for name, c in shown.items() if isinstance(c, GroupComparison)}
    if groups:
        save_forest(groups, folder / f"compare{kind}.png", run_title(found.title, meta))
    if found.sections:
        frames = [c.to_frame().assign(section=name) for name, c in found.sections.items()]
        tables[f"compare{kind}"] = pd.concat(frames, ignore_index=True).astype(_axes_of(frames))
    if found.heads is not None:
        tables["attention_heads"] = found.heads.to_frame()
        title = run_title("What heads look at", meta)
        save_head_maps(found.heads, folder / "attention_heads.png", title)
    if found.probe is not None:
        tables[f"probe{kind}"] = found.probe.to_frame()
        what = "that the answer will be right" if isinstance(found.probe, ProbeResult) else found.probe.label
        save_probe(found.probe, folder / f"probe{kind}.png", run_title(f"Can a layer tell {what}?", meta))
    if found.calibration is not None:
        tables["calibration"] = found.calibration.to_frame()
        title = run_title("Calibration", meta)
        save_reliability(found.calibration, folder / "calibration.png", title)
    for name, frame in tables.items():
        write_table(folder / f"{name}.parquet", pa.Table.from_pandas(frame, preserve_index=False))


def _axes_of(frames: Sequence[pd.DataFrame]) -> dict[str, str]:
    """Return nullable integers for the axes that some sections have and others do not."""
    return {axis: "Int64" for axis in ("layer", "head") if any(axis in frame for frame in frames)}


def _shown(comparison: GroupComparison | Correlation) -> GroupComparison | Correlation:
    """Return what is shown: of many heads those that differ most."""
    return comparison.strongest(_HEADS_SHOWN) if comparison.axes else comparison


def _headed(name: str, comparison: GroupComparison | Correlation) -> str:
    if not comparison.axes:
        return name
    found = int((comparison.q_value < 0.05).sum())
    what = "differences" if isinstance(comparison, GroupComparison) else "correlations"
    return f"{name}: the largest of {comparison.n_compared} {what}, {found} of them with q < 0.05"


def _print(found: _Findings, console: Console) -> None:
    for name, comparison in found.sections.items():
        shown, title = _shown(comparison), _headed(name, comparison)
        if isinstance(shown, GroupComparison):
            console.print(comparison_table(shown, title))
        else:
            console.print(correlation_table(shown, title))
    if isinstance(found.probe, ProbeResult):
        console.print(probe_table(found.probe))
    elif found.probe is not None:
        console.print(label_probe_table(found.probe))
    if found.calibration is not None:
        console.print(calibration_table(found.calibration))
    for what, reason in found.left_out.items():
        console.print(f"No {what}: {reason}", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_command(CompareCommand, run, argv, prog="decision-traces compare")
