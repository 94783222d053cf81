"""What each analysis needs of a run: what is missing is reported before a model is loaded. Needs no torch."""

from decision_traces.analysis.attention.statistics import attention_array
from decision_traces.analysis.attribution.stream import layer_writes
from decision_traces.analysis.decisions import decisions_of
from decision_traces.analysis.options import AttentionOptions, AttributionOptions, CompareOptions, LensOptions
from decision_traces.analysis.probing.labels import labels_of
from decision_traces.analysis.requirements import (
    need_choice_states,
    need_choices,
    need_whole,
    refuse_unsplit,
)
from decision_traces.analysis.states import path_of
from decision_traces.errors import UsageError
from decision_traces.store import TraceStore


def of_lens(store: TraceStore, options: LensOptions) -> None:
    """Raise where there is no lens.

    Raises:
        NotCapturedError: The run holds no states.
        UsageError: It has no such decision, does not keep all layers, or an option is out of its range.
        DataError: No example of the run has a prediction.
    """
    _at_least("--top_k", options.top_k, 1)
    if store.task.reads_choices:
        need_choice_states(store)
        return
    decisions_of(store, options.of)
    path_of(store, "hidden")


def of_attribution(store: TraceStore, options: AttributionOptions) -> None:
    """Raise where the lead cannot be split up.

    Raises:
        NotCapturedError: The run holds no states.
        UnsupportedArchitecture: Its logits are no sum of what the parts of its model wrote.
        UsageError: It has no such decision, does not keep all layers, or an option is out of its range.
        DataError: No example of the run has a prediction.
    """
    _at_least("--top_k", options.top_k, 1)
    if store.task.reads_choices:
        need_choices(store)
        return
    decisions_of(store, options.of)
    refuse_unsplit(store)
    layer_writes(store)


def of_attention(store: TraceStore, options: AttentionOptions) -> None:
    """Raise where attention cannot be measured.

    Raises:
        NotCapturedError: The run holds none.
        UsageError: It does not keep all layers, heads and positions of it.
    """
    need_whole(store.array(options.array or attention_array(store)), "what a head looks at", positions=True)


def of_comparison(store: TraceStore, options: CompareOptions) -> None:
    """Raise where there is nothing to compare by.

    Raises:
        UsageError: The run has no such column, or an option is out of its range.
    """
    least = {"--n_boot": (options.n_boot, 1), "--folds": (options.folds, 2), "--seed": (options.seed, 0)}
    for flag, (value, smallest) in least.items():
        _at_least(flag, value, smallest)
    if options.max_examples is not None:
        _at_least("--max_examples", options.max_examples, 1)
    if options.by is not None:
        labels_of(store, options.by)


def _at_least(flag: str, value: int, smallest: int) -> None:
    if value < smallest:
        raise UsageError(f"{flag} {value}: needs at least {smallest}.")
