"""`Run`: a run folder with its analyses and its page. Opening one needs no torch."""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import wraps
from inspect import Parameter, Signature, signature
from os import PathLike
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from decision_traces.analysis.options import AttentionOptions, AttributionOptions, CompareOptions, LensOptions
from decision_traces.api.options import plain_values, refuse_other_kinds
from decision_traces.errors import UsageError
from decision_traces.paths import portable_fields
from decision_traces.store import ExampleKey, TraceStore, newest_run

if TYPE_CHECKING:
    from decision_traces.analysis.attention.statistics import AttentionStatistics
    from decision_traces.analysis.attribution.result import AttributionResult
    from decision_traces.analysis.comparison.result import Comparison
    from decision_traces.analysis.lens.result import LensResult
    from decision_traces.page.notebook import PageFrame
    from decision_traces.page.still import Still

_Flags = ParamSpec("_Flags")
_Options = TypeVar("_Options", LensOptions, AttributionOptions, AttentionOptions, CompareOptions)
_Result = TypeVar("_Result")


def _with(
    kind: Callable[_Flags, _Options],
) -> Callable[[Callable[["Run", _Options], _Result]], Callable[Concatenate["Run", _Flags], _Result]]:
    """Let a method that takes options take their fields instead, as its command takes flags."""

    def wrap(method: Callable[["Run", _Options], _Result]) -> Callable[Concatenate["Run", _Flags], _Result]:
        @wraps(method)
        def call(self: "Run", *args: _Flags.args, **flags: _Flags.kwargs) -> _Result:
            try:
                options = kind(*args, **plain_values(flags))
            except TypeError as error:
                names = ", ".join(field.name for field in fields(kind))  # type: ignore[arg-type]
                raise UsageError(f"{method.__name__}: {_reason(error)}. Its options are {names}.") from error
            refuse_other_kinds(options, (field.name for field in fields(options)))
            return method(self, replace(options, **portable_fields(options)))

        shown = [Parameter("self", Parameter.POSITIONAL_OR_KEYWORD), *signature(kind).parameters.values()]
        gives = signature(method).return_annotation
        call.__signature__ = Signature(shown, return_annotation=gives)  # type: ignore[attr-defined]
        return cast(Callable[Concatenate["Run", _Flags], _Result], call)

    return wrap


def _reason(error: TypeError) -> str:
    """Return Python's message about a call's arguments, without the function's name."""
    return str(error).rpartition("() ")[2]


class Run(TraceStore):
    """A run folder, open for reading, for analyses and to be looked at; see `TraceStore` for how it is read.

    An analysis is kept in the run (or in `results`), in place of the one before, as its command keeps it, and returned.
    Its options are those of the command, by name.

    Errors common to all analyses: `NotCapturedError` for an array that it needs, `ModelError` where the model is
    missing or another one, `UnsupportedArchitecture` where the method does not apply, `UsageError` for an unknown
    option, `RunError` where the result cannot be written.

    Examples:
        >>> run = Run("traces/wt2_val500_gpt2")  # doctest: +SKIP
        >>> run.hidden(0).shape  # doctest: +SKIP
        (13, 256, 768)
        >>> run.lens(top_k=3).depth.to_frame()  # doctest: +SKIP
        >>> run.view()  # doctest: +SKIP
    """

    @_with(LensOptions)
    def lens(self, options: LensOptions) -> "LensResult":
        """Return what the model would say after each layer, and when its decisions stand; see `LensOptions`."""
        result: LensResult = self._computed("lens", options)
        return result

    @_with(AttributionOptions)
    def attribution(self, options: AttributionOptions) -> "AttributionResult":
        """Return what each layer, MLP and head adds to the lead of the target; see `AttributionOptions`."""
        result: AttributionResult = self._computed("attribution", options)
        return result

    @_with(AttentionOptions)
    def attention(self, options: AttentionOptions) -> "AttentionStatistics":
        """Return what every attention head looks at; see `AttentionOptions`."""
        result: AttentionStatistics = self._computed("attention", options)
        return result

    @_with(CompareOptions)
    def compare(self, options: CompareOptions) -> "Comparison":
        """Return how right answers differ from wrong ones, or groups of a column; see `CompareOptions`."""
        result: Comparison = self._computed("compare", options)
        return result

    def view(self, example: ExampleKey | None = None) -> "PageFrame":
        """Return the page that `decision-traces view` opens, framed for a notebook; see `page.notebook.view`."""
        from decision_traces.page.notebook import view

        return view(self, example)

    def show(self, example: ExampleKey) -> "Still":
        """Return one example as a still picture, without a server; see `page.still.show`."""
        from decision_traces.page.still import show

        return show(self, example)

    def _computed(self, name: str, options: Any) -> Any:
        from decision_traces.api.compute import compute
        from decision_traces.api.progress import counting
        from decision_traces.api.surroundings import own_surroundings

        with own_surroundings():
            return compute(self, name, options, counting).result


def open_run(path: str | PathLike[str] | None = None, root: str | PathLike[str] = "traces") -> Run:
    """Open a run folder; the newest complete one under `root` where no path is given.

    Raises:
        RunError: There is none.
    """
    return Run(newest_run(root) if path is None else path)
