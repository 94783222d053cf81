"""What reading a run costs, beside the bars that it is held to.

    python -m benchmarks.reading RUN [--large RUN_OF_100,000]

RUN holds everything (`--capture attn qkv hidden resid`). Files are in the page cache: every pick is read once before
it is timed. The matrix products of the logit lens are timed on as many random vectors as the lens reads states.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.machine import about_machine
from decision_traces import TraceStore
from decision_traces.analysis.lens.logit_lens import logit_lens
from decision_traces.analysis.lens.unembedding import Unembedding, load_unembedding
from decision_traces.model.load import quiet_transformers

_MS: Final = 1e3
_MB: Final = 1e6
_STAGE: Final = "post_mlp"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which runs to read, and how often."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run that captured everything."""
    large: Path | None = None
    """A run of 100,000 examples, to be opened in a process of its own."""
    model_path: Path | None = None
    """Where the run's model lies now, if not where it lay then."""
    picks: int = 300
    """How many random picks of each kind of read."""
    rounds: int = 3
    """How many rounds of what reads the whole run."""
    seed: int = 0
    """Of the picks."""
    json: Path | None = None
    """Write machine and figures here."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure beside its bar.

    Attributes:
        what: What was done.
        figure: What it came to.
        unit: Its unit.
        bar: What it is held to; None where there is no bar.
        at_least: Whether the figure is to reach the bar, not to stay within it.
    """

    what: str
    figure: float
    unit: str
    bar: float | None = None
    at_least: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the bar is reached; None where there is none."""
        if self.bar is None:
            return None
        return self.figure >= self.bar if self.at_least else self.figure <= self.bar


def picks(store: TraceStore, settings: Settings) -> Iterator[Finding]:
    """Time one head's attention, and one layer's residual stream, of single examples."""
    random = np.random.default_rng(settings.seed)
    chosen = store.tokens["example_id"].iloc[random.integers(store.n, size=settings.picks)]
    layers, heads = random.integers(store.L, size=settings.picks), random.integers(store.H, size=settings.picks)
    places = list(zip(chosen, layers.tolist(), heads.tolist(), strict=True))
    attention = _median([partial(store.attn, example, layer=layer, head=head) for example, layer, head in places])
    yield Finding("attention of one head of one example", attention * _MS, "ms", 2)
    stream = _median([partial(store.resid, example, stage=_STAGE, layer=layer) for example, layer, _ in places])
    yield Finding("residual stream of one layer of one example", stream * _MS, "ms", 1)


def one_position(store: TraceStore, settings: Settings) -> Iterator[Finding]:
    """Time one position of every example, in one read and example by example.

    Raises:
        AssertionError: The two do not give the same numbers.
    """
    layer = store.L // 2
    known = np.flatnonzero(store.tokens["next_pos"].to_numpy() >= 0)
    where = [(str(store.tokens["example_id"].iloc[i]), int(store.tokens["next_pos"].iloc[i])) for i in known]

    def gathered() -> np.ndarray:
        return store.gather(f"dec_res_{_STAGE}", layer=layer, position="next")[known]

    def looped() -> np.ndarray:
        return np.stack([store.resid(example, stage=_STAGE, layer=layer)[at] for example, at in where])

    assert np.array_equal(gathered(), looped()), "gather and the accessors disagree"
    one = statistics.median(_seconds(gathered) for _ in range(settings.rounds))
    many = statistics.median(_seconds(looped) for _ in range(settings.rounds))
    yield Finding(f"gather one position of {len(where)} examples", one * _MS, "ms")
    yield Finding("the same by a loop over accessors", many * _MS, "ms")
    yield Finding("loop over gather", many / one, "×", 20, at_least=True)


def lens(store: TraceStore, settings: Settings) -> Iterator[Finding]:
    """Time the logit lens over the run, and its matrix products alone."""
    with quiet_transformers():
        unembedding = load_unembedding(store, settings.model_path, "cpu")
    n = len(logit_lens(store, unembedding).example_id)  # reads the files once
    wholes, alones = [], []
    for _ in range(settings.rounds):
        wholes.append(_seconds(lambda: logit_lens(store, unembedding)))
        alones.append(_seconds(lambda: products(unembedding, n, store.L + 1)))
    whole, alone = statistics.median(wholes), statistics.median(alones)
    yield Finding(f"logit lens, {n} decisions at {store.L + 1} depths", whole, "s")
    yield Finding("its matrix products alone", alone, "s")
    yield Finding("products over lens", alone / whole, "", 0.8, at_least=True)


@torch.inference_mode()
def products(unembedding: Unembedding, n: int, n_depths: int) -> None:
    """Multiply as many vectors by the output embedding as the lens does, in portions of the same size."""
    states = torch.randn(n, unembedding.weight.shape[1])
    for rows in unembedding.portions(n):
        for _ in range(n_depths):
            unembedding.head(states[rows])


def opening(run: Path, rounds: int) -> Iterator[Finding]:
    """Open a run in processes of their own."""
    command = [sys.executable, "-m", "benchmarks.opening", str(run)]
    root = Path(__file__).parents[1]
    done = [subprocess.run(command, cwd=root, capture_output=True, text=True, check=True) for _ in range(rounds)]
    told = [json.loads(process.stdout) for process in done]
    medians = {key: statistics.median(t[key] for t in told) for key in told[0]}
    yield Finding(f"opening a run of {told[0]['n']:,} examples (with import)", medians["open_s"], "s", 1)
    yield Finding("peak memory of that process", medians["open_bytes"] / _MB, "MB", 300)
    yield Finding("then reading its whole token table", medians["tokens_s"], "s")
    yield Finding("peak memory with it", medians["tokens_bytes"] / _MB, "MB")


def _median(reads: Sequence[Callable[[], object]]) -> float:
    """Return the median seconds of some reads, each done once before."""
    for read in reads:
        read()
    return statistics.median(_seconds(read) for read in reads)


def _seconds(do: Callable[[], object]) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def table_of(findings: Sequence[Finding], title: str) -> Table:
    """Return the findings as a table."""
    table = Table(title=title, title_justify="left")
    for heading in ("", "figure", "bar", "reached"):
        table.add_column(heading, justify="right" if heading else "left")
    for finding in findings:
        bar = "–" if finding.bar is None else f"{'≥' if finding.at_least else '≤'} {finding.bar:g} {finding.unit}"
        reached = {None: "–", True: "yes", False: "NO"}[finding.reached]
        table.add_row(finding.what, f"{finding.figure:,.2f} {finding.unit}", bar, reached)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    settings = tyro.cli(Settings, args=argv, use_underscores=True)
    store = TraceStore(settings.run)
    findings = [*picks(store, settings), *one_position(store, settings), *lens(store, settings)]
    if settings.large is not None:
        findings += opening(settings.large.resolve(), settings.rounds)
    meta = store.meta
    title = f"{meta['model']} on {meta['dataset']}, {store.n} examples, T = {store.T}, in the page cache"
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table_of(findings, title))
    if settings.json is not None:
        told = [{**asdict(finding), "reached": finding.reached} for finding in findings]
        settings.json.write_text(json.dumps({"run": title, "machine": about_machine(), "findings": told}, indent=1))


if __name__ == "__main__":
    main()
