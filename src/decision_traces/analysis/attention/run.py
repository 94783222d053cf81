"""What every attention head of a run looks at."""

from pathlib import Path

from decision_traces.analysis.attention.statistics import AttentionStatistics, attention_statistics
from decision_traces.analysis.options import AttentionOptions
from decision_traces.analysis.progress import Counting
from decision_traces.analysis.writing import write_frame
from decision_traces.format.analyses import HEADS_TABLE
from decision_traces.store import TraceStore


def run(
    store: TraceStore, options: AttentionOptions, counting: Counting, *, page: Path | None = None
) -> AttentionStatistics:
    """Measure every head on every example; the page draws nothing more.

    Raises:
        TraceError: See `attention_statistics`.
    """
    with counting("attention") as progress:
        return attention_statistics(store, options.array, progress=progress)


def write(result: AttentionStatistics, folder: Path) -> None:
    """Write the figures of every head."""
    write_frame(folder / HEADS_TABLE, result.per_head().to_frame())
