"""Every analysis, once: what it takes, what it needs of a run, and where its code is. Needs no torch.

What its result holds is in `format.analyses`; how a result is shown, in `viz.analyses`. The command line, the demo
and Python go through this table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from decision_traces.analysis import needs
from decision_traces.analysis.options import AttentionOptions, AttributionOptions, CompareOptions, LensOptions
from decision_traces.analysis.progress import Counting, uncounted
from decision_traces.store import TraceStore


@dataclass(frozen=True, slots=True)
class Analysis:
    """One analysis.

    Attributes:
        name: Its command.
        options: The dataclass of its options.
        needs: (run, options) → nothing; raises an error for what is missing, before anything is loaded.
        home: The module with its `run` and `write`; it may import torch, and is loaded when first asked.
        result: Options to the name of what they leave in a run (`format.analyses.RESULTS`).
    """

    name: str
    options: type[Any]
    needs: Callable[[TraceStore, Any], None]
    home: str
    result: Callable[[Any], str]

    def run(self, store: TraceStore, options: Any, counting: Counting = uncounted, *, page: Path | None = None) -> Any:
        """Return the result; what only the page shows, too large to return, goes into the folder `page`."""
        return import_module(self.home).run(store, options, counting, page=page)

    def write(self, result: Any, folder: Path) -> None:
        """Write the tables of a result."""
        import_module(self.home).write(result, folder)


def _here(name: str, options: type[Any], need: Callable[[TraceStore, Any], None], package: str) -> Analysis:
    return Analysis(name, options, need, f"decision_traces.analysis.{package}.run", lambda _: name)


ANALYSES: Final[Mapping[str, Analysis]] = {
    "lens": _here("lens", LensOptions, needs.of_lens, "lens"),
    "attribution": _here("attribution", AttributionOptions, needs.of_attribution, "attribution"),
    "attention": _here("attention", AttentionOptions, needs.of_attention, "attention"),
    "compare": Analysis(
        "compare",
        CompareOptions,
        needs.of_comparison,
        "decision_traces.analysis.comparison.run",
        lambda options: "compare" if options.by is None else "compare_by",
    ),
}
"""Name to analysis."""
