"""Where the time of an extraction goes beyond a bare forward pass.

    python -m benchmarks.gap --model_path FOLDER --data_dir FOLDER [--limit 80] [--rounds 3]

Round after round: the bare forward pass (SDPA), the same with attention written out, and ours with everything captured,
in which the copies of the captures, the outcomes, and the waiting for the writer are timed where they happen, and the
writer's own thread by the processor time it takes. The medians are printed as shares of the bare pass.
"""

import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.contenders.families import load
from benchmarks.contenders.limit import logits_at_end, packed
from benchmarks.contenders.ours import Ours
from benchmarks.contenders.task import SETS, Task
from benchmarks.texts import Texts
from decision_traces.extract import engine, next_token
from decision_traces.model.load import quiet_transformers
from decision_traces.store.writing.writer import RunWriter
from decision_traces.tracing.buffers import BatchBuffers

_TIMED: Final[Sequence[tuple[str, Any, str]]] = (
    ("copies of the captures, in the pass", BatchBuffers, "put"),
    ("outcomes (softmax over the vocabulary, top k)", next_token, "next_token_outcomes"),
    ("tables of the blocks", next_token.NextTokenWorkflow, "tables"),
    ("waiting for the writer", engine._Pipeline, "_wait"),
    ("joining the tables, manifest", RunWriter, "commit"),
)
_WRITER: Final = ("the writer's thread beside it (processor time)", engine._Pipeline, "_store")


@dataclass(frozen=True, kw_only=True)
class Settings(Texts):
    """What to measure."""

    model_path: Path
    """Folder with config, weights and tokenizer of a decoder."""
    limit: int = 80
    """How many examples."""
    capture: str = "everything"
    """Which set: resid, qkv, everything."""
    rounds: int = 3
    """How many rounds."""


@contextmanager
def _timed(spent: Counter[str]) -> Any:
    """Count the seconds of some functions while this lasts."""

    def counted(name: str, do: Callable[..., Any], clock: Callable[[], float]) -> Callable[..., Any]:
        @wraps(do)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            try:
                return do(*args, **kwargs)
            finally:
                spent[name] += clock() - start

        return timed

    with ExitStack() as stack:
        for name, owner, attribute in (*_TIMED, _WRITER):
            clock = time.thread_time if name == _WRITER[0] else time.perf_counter
            replaced = counted(name, getattr(owner, attribute), clock)
            stack.enter_context(mock.patch.object(owner, attribute, replaced))
        yield


def bare(task: Task, attention: str) -> float:
    """Return the seconds of the forward passes alone."""
    model, batches = load(task.model_path, attention), packed(task.tokens())
    with torch.inference_mode():
        logits_at_end(model, batches[0])
        start = time.perf_counter()
        for batch in batches:
            logits_at_end(model, batch)
        return time.perf_counter() - start


def one_round(task: Task, folder: Path) -> Counter[str]:
    """Return the seconds of each part."""
    spent: Counter[str] = Counter({"bare forward pass": bare(task, "sdpa")})
    if task.attention == "eager":
        spent["bare forward pass, attention written out"] = bare(task, "eager")
    with _timed(spent):
        spent["decision-traces, whole"] = Ours().run(task, folder).seconds
    return spent


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    settings = tyro.cli(Settings, args=argv, use_underscores=True)
    source = (settings.dataset, settings.split, settings.data_dir, settings.limit)
    task = Task(settings.model_path.resolve(), *source, settings.max_seq_len, SETS[settings.capture])
    rounds: list[Counter[str]] = []
    with quiet_transformers():
        for _ in range(settings.rounds):
            with tempfile.TemporaryDirectory() as scratch:
                rounds.append(one_round(task, Path(scratch) / "run"))
    table = Table(title=f"{task.model_path.name}, {settings.limit} examples, {' '.join(task.capture)}")
    for heading in ("", "seconds", "of the bare pass"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name in rounds[0]:
        share = statistics.median(r[name] / r["bare forward pass"] for r in rounds)
        table.add_row(name, f"{statistics.median(r[name] for r in rounds):.2f}", f"{100 * share:.1f} %")
    Console(highlight=False, width=None if sys.stdout.isatty() else 110).print(table)


if __name__ == "__main__":
    main()
