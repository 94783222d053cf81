"""`decision-traces compare`: how right answers differ from wrong ones, in all that a run holds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, NoReturn

import pandas as pd
import pyarrow as pa
import tyro
from rich.console import Console

from decision_traces.analysis.answers import FINAL_FIGURES, FinalAnswers, final_answers
from decision_traces.analysis.attention import ATTENTION_ARRAYS, HeadMeans, attention_statistics
from decision_traces.analysis.calibration import Calibration, calibrate
from decision_traces.analysis.patterns import ATTENTION_FIGURES
from decision_traces.analysis.probe import ProbeResult, probe_correctness
from decision_traces.analysis.statistics import GroupComparison, compare_frame, compare_groups
from decision_traces.cli._app import make_console, run_command
from decision_traces.cli._counting import counting
from decision_traces.cli._written import kept_in_run
from decision_traces.errors import TraceError, UsageError
from decision_traces.store.reader import TraceStore
from decision_traces.store.table import write_table
from decision_traces.views.comparison_tables import calibration_table, comparison_table, probe_table
from decision_traces.views.comparisons import save_forest
from decision_traces.views.head_maps import save_head_maps
from decision_traces.views.probes import save_probe
from decision_traces.views.reliability import save_reliability
from decision_traces.views.style import run_title

ANSWER, DEPTH, HEADS = "The final answer", "When it was decided", "Attention heads"
_HEADS_SHOWN: Final = 12
_HIDDEN: Final = ("dec_hidden", "enc_hidden", "enc_mc_hidden")


@dataclass(frozen=True, slots=True)
class CompareCommand:
    """Compare right with wrong answers: certainty, attention, decision depth, a probe per layer, calibration.

    Attributes:
        run: The run folder.
        seed: Of bootstrap draws, folds, subsample and shuffles.
        n_boot: Bootstrap draws.
        folds: Of the probe's cross-validation.
        max_examples: Let the probe use no more examples than these.
        model_path: Where the model lies now, for the decision depth.
        trust_remote_code: Run Python that the model brings along; only for models of people you trust.
        quiet: Print nothing; the files are written.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    seed: int = 0
    n_boot: int = 2000
    folds: int = 5
    max_examples: int | None = None
    model_path: Path | None = None
    trust_remote_code: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


@dataclass(slots=True)
class _Findings:
    """What was found; `left_out` says why the rest could not be."""

    sections: dict[str, GroupComparison]
    calibration: Calibration | None = None
    heads: HeadMeans | None = None
    probe: ProbeResult | None = None
    left_out: dict[str, str] = field(default_factory=dict)


def run(args: CompareCommand) -> int:
    """Compare, print the tables, and put tables and pictures into the run."""
    console, store = make_console(), TraceStore(args.run)
    console.quiet = args.quiet
    _check(args)
    with kept_in_run(store, "compare", args, console) as folder:
        found = _compare(store, args, make_console(stderr=True))
        _write(found, store, folder)
        _print(found, console)
    return 0


def _compare(store: TraceStore, args: CompareCommand, errors: Console) -> _Findings:
    answers = final_answers(store)
    found = _Findings({ANSWER: _answers(answers, args)})
    try:
        found.calibration = calibrate(answers.answer_prob, answers.correct)
    except TraceError as reason:
        found.left_out["calibration"] = str(reason)
    _add_depth(found, store, answers, args)
    _add_heads(found, store, answers, args, errors)
    _add_probe(found, store, args, errors)
    return found


def _check(args: CompareCommand) -> None:
    least = {"--n_boot": (args.n_boot, 1), "--folds": (args.folds, 2), "--max_examples": (args.max_examples, 1)}
    for flag, (value, smallest) in least.items():
        if value is not None and value < smallest:
            raise UsageError(f"{flag} {value}: needs at least {smallest}.")


def _answers(answers: FinalAnswers, args: CompareCommand) -> GroupComparison:
    figures = {name: getattr(answers, name) for name in FINAL_FIGURES}
    return compare_groups(figures, answers.correct, n_boot=args.n_boot, seed=args.seed)


def _add_depth(found: _Findings, store: TraceStore, answers: FinalAnswers, args: CompareCommand) -> None:
    """Compare decision depth, where the run captured hidden states and its model can be loaded."""
    if not (store.has("dec_hidden") or store.has("enc_mc_hidden")):
        return
    # Here and not above: without hidden states there is no need of torch.
    from decision_traces.analysis.run_depth import run_depth

    try:
        depth = run_depth(store, args.model_path, trust_remote_code=args.trust_remote_code)
    except TraceError as reason:
        found.left_out["decision depth"] = str(reason)
        return
    truth = answers.to_frame()[["example_id", "correct"]]
    frame = depth.to_frame().drop(columns="correct").merge(truth, on="example_id")
    found.sections[DEPTH] = compare_frame(frame, ("stable_from", "flips"), n_boot=args.n_boot, seed=args.seed)


def _add_heads(
    found: _Findings, store: TraceStore, answers: FinalAnswers, args: CompareCommand, errors: Console
) -> None:
    """Compare what heads look at, where the run captured attention; a choice run by the mean over its choices."""
    if not any(store.has(name) for name in ATTENTION_ARRAYS):
        return
    with counting(errors, "attention", quiet=args.quiet) as progress:
        statistics = attention_statistics(store, progress=progress)
    values = statistics.by_example()
    found.heads = statistics.per_head()
    found.sections[HEADS] = compare_groups(
        {name: values.figure(name)[answers.row] for name in ATTENTION_FIGURES},
        answers.correct,
        axes=("layer", "head"),
        n_boot=args.n_boot,
        seed=args.seed,
    )


def _add_probe(found: _Findings, store: TraceStore, args: CompareCommand, errors: Console) -> None:
    if not any(store.has(name) for name in _HIDDEN):
        return
    with counting(errors, "probe", quiet=args.quiet) as progress:
        try:
            found.probe = probe_correctness(
                store, folds=args.folds, max_examples=args.max_examples, seed=args.seed, progress=progress
            )
        except UsageError as reason:
            found.left_out["probe"] = str(reason)


def _write(found: _Findings, store: TraceStore, folder: Path) -> None:
    """Write what was found."""
    meta = store.meta
    sections = {f"{name}: {_note(c)}" if name == HEADS else name: _shown(name, c) for name, c in found.sections.items()}
    save_forest(sections, folder / "compare.png", run_title("Right against wrong answers", meta))
    frames = [c.to_frame().assign(section=name) for name, c in found.sections.items()]
    tables = {"compare": pd.concat(frames, ignore_index=True).astype(_axes_of(frames))}
    if found.heads is not None:
        tables["attention_heads"] = found.heads.to_frame()
        title = run_title("What heads look at", meta)
        save_head_maps(found.heads, folder / "attention_heads.png", title)
    if found.probe is not None:
        tables["probe"] = found.probe.to_frame()
        title = run_title("Can a layer tell that the answer will be right?", meta)
        save_probe(found.probe, folder / "probe.png", title)
    if found.calibration is not None:
        tables["calibration"] = found.calibration.to_frame()
        title = run_title("Calibration", meta)
        save_reliability(found.calibration, folder / "calibration.png", title)
    for name, frame in tables.items():
        write_table(folder / f"{name}.parquet", pa.Table.from_pandas(frame, preserve_index=False))


def _axes_of(frames: Sequence[pd.DataFrame]) -> dict[str, str]:
    """Return nullable integers for the axes that some sections have and others do not."""
    return {axis: "Int64" for axis in ("layer", "head") if any(axis in frame for frame in frames)}


def _shown(name: str, comparison: GroupComparison) -> GroupComparison:
    return comparison.strongest(_HEADS_SHOWN) if name == HEADS else comparison


def _note(comparison: GroupComparison) -> str:
    found = int((comparison.q_value < 0.05).sum())
    return f"the largest of {comparison.n_compared} differences, {found} of them with q < 0.05"


def _print(found: _Findings, console: Console) -> None:
    for name, comparison in found.sections.items():
        title = f"{name}: {_note(comparison)}" if name == HEADS else name
        console.print(comparison_table(_shown(name, comparison), title))
    if found.probe is not None:
        console.print(probe_table(found.probe))
    if found.calibration is not None:
        console.print(calibration_table(found.calibration))
    for what, reason in found.left_out.items():
        console.print(f"No {what}: {reason}", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_command(CompareCommand, run, argv, prog="decision-traces compare")
