"""Computing an analysis on a run, and keeping it there: tables, pictures, and what the page draws."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from decision_traces.analysis.progress import Counting, uncounted
from decision_traces.analysis.registry import ANALYSES
from decision_traces.store import TraceStore, new_result
from decision_traces.viz.analyses import save_pictures


@dataclass(frozen=True, slots=True)
class Computed:
    """What was computed on a run.

    Attributes:
        result: The result of the analysis.
        files: The files in its folder now.
        notes: What users should know about the old result, a sentence each.
    """

    result: Any
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def compute(
    store: TraceStore, name: str, options: Any = None, counting: Counting = uncounted, *, command: str | None = None
) -> Computed:
    """Compute an analysis on a run and keep it, in place of the old result.

    Args:
        store: The run; it knows where its results lie.
        name: One of `analysis.registry.ANALYSES`.
        options: Of that analysis; the defaults where left out.
        counting: Called with what is counted.
        command: What makes it, where that is another command.

    Raises:
        TraceError: The analysis, or writing it, failed; the old result stays then.
    """
    analysis = ANALYSES[name]
    options = analysis.options() if options is None else options
    analysis.needs(store, options)
    kept_as = analysis.result(options)
    with new_result(store, kept_as, asdict(options), command=command) as new:
        result = analysis.run(store, options, counting, page=new.folder)
        analysis.write(result, new.folder)
        save_pictures(result, store, new.folder)
    files = tuple(sorted(store.results.result(kept_as).iterdir()))
    return Computed(result, files, tuple(new.notes))
