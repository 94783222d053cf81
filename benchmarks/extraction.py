"""What extraction costs beside a bare forward pass, beside plain transformers, and beside other tools.

    python -m benchmarks.extraction --model_path FOLDER --data_dir FOLDER [--limit 500] [--rounds 3]

All contenders do the same examples, tokens and arrays, one after the other, round after round, so that whatever else
the machine does falls on all of them. The other tools come with `pip install -c constraints.txt -e ".[bench]"`; each
runs in a process of its own, because some change torch for everybody. `--check` first compares what they write with
ours on a few examples, `--memory` adds a run of each in a process of its own, and `--show FILE` only prints (and
draws) what an earlier benchmark has written to `--json FILE`, which is filled run by run.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import tyro
from rich.console import Console

from benchmarks.agreement import Agreement
from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.protocol import UnavailableError
from benchmarks.contenders.task import SETS, Task
from benchmarks.machine import about_machine
from benchmarks.measure import measure
from benchmarks.picture import save_ratios
from benchmarks.report import agrees, markdown, show
from benchmarks.results import Results
from benchmarks.texts import Texts
from decision_traces.model.load import quiet_transformers

Name = Literal["limit", "ours", "plain", "transformer_lens", "nnsight", "torchlens"]
SetName = Literal["resid", "qkv", "everything"]
_MEMORY: Final = "memory"
_CHECKED: Final = 6  # examples: more say the same


@dataclass(frozen=True, kw_only=True)
class Settings(Texts):
    """What to measure, and where the figures go."""

    model_path: Path = Path()
    """Folder with config, weights and tokenizer of a decoder."""
    limit: int = 500
    """How many examples."""
    batch_size: int = 64
    """Most rows of a batch of ours."""
    contenders: tuple[Name, ...] = ("limit", "ours", "plain", "transformer_lens", "nnsight", "torchlens")
    """Who takes part."""
    captures: tuple[SetName, ...] = ("resid", "qkv", "everything")
    """Which sets of arrays: hidden states and residual stream; q, k and v besides; attention as well."""
    rounds: int = 3
    """How many rounds; 0 with --check or --memory alone."""
    once: tuple[Name, ...] = ()
    """Who takes part in the first round alone: one that is far slower than the others need not be timed as often."""
    check: bool = False
    """First compare the arrays of every contender with ours on a few examples."""
    memory: bool = False
    """Also run each once in a process of its own, for its peak memory."""
    scratch: Path | None = None
    """Where runs are written and removed again; default a temporary folder."""
    json: Path | None = None
    """Write machine, figures and every round here, after every run."""
    markdown: Path | None = None
    """Write the tables here."""
    picture: Path | None = None
    """Draw × limit here, as PNG."""
    show: Path | None = None
    """Measure nothing: show what an earlier benchmark wrote with --json."""

    def task(self, capture: str) -> Task:
        """Return the task of one set of captures."""
        return Task(
            self.model_path.resolve(),
            self.dataset,
            self.split,
            self.data_dir,
            self.limit,
            self.max_seq_len,
            SETS[capture],
            self.batch_size,
        )


@dataclass(frozen=True, slots=True)
class Session:
    """One benchmark under way.

    Attributes:
        settings: What was asked for.
        results: What is known so far.
        scratch: Where contenders write.
        console: Where progress goes.
    """

    settings: Settings
    results: Results
    scratch: Path
    console: Console

    def run(self) -> None:
        """Do everything that was asked for."""
        captures = self.settings.captures
        for capture in captures if self.settings.check else ():
            self._check(capture)
        for number in range(self.settings.rounds):
            for capture in captures:
                self._round(capture, f"round {number + 1}", without=self.settings.once if number else ())
        for capture in captures if self.settings.memory else ():
            self._round(capture, _MEMORY)

    def _check(self, capture: str) -> None:
        few = replace(self.settings, limit=min(_CHECKED, self.results.n_examples))
        agreement = Agreement(few.task(capture), self.scratch)
        for name in self._contenders(capture):
            if name == "ours":
                continue
            self._say("check", capture, name, "")
            try:
                self.results.agreement.setdefault(capture, {})[name] = agreement.of(name)
            except UnavailableError as reason:
                self._refuse("check", capture, name, reason)
            self._keep()
        agreement.close()

    def _round(self, capture: str, what: str, without: Sequence[str] = ()) -> None:
        task, apart = self.settings.task(capture), what == _MEMORY
        for name in self._contenders(capture):
            if name in without:
                continue
            try:
                measured = measure(name, task, self.scratch / name, apart=apart)
            except UnavailableError as reason:
                self._refuse(what, capture, name, reason)
                continue
            if apart:
                self.results.memory.setdefault(capture, {})[name] = measured
            else:
                self.results.rounds.setdefault(capture, {}).setdefault(name, []).append(measured)
            self._say(what, capture, name, f"{measured.seconds:.1f} s")
            self._keep()

    def _contenders(self, capture: str) -> list[str]:
        """Return who takes part, the limit first, without those that have said that they cannot."""
        reasons = self.results.unavailable.get(capture, {})
        return [name for name in CONTENDERS if name in self.settings.contenders and name not in reasons]

    def _refuse(self, what: str, capture: str, name: str, reason: UnavailableError) -> None:
        self.results.unavailable.setdefault(capture, {})[name] = str(reason)
        self._say(what, capture, name, str(reason))
        self._keep()

    def _say(self, what: str, capture: str, name: str, words: str) -> None:
        self.console.print(f"{what}, {capture}: {CONTENDERS[name].about.title} {words}", markup=False)

    def _keep(self) -> None:
        if self.settings.json is not None:
            self.results.save(self.settings.json)


def begin(settings: Settings) -> Results:
    """Return results without figures."""
    tokens = settings.task(settings.captures[0]).tokens()
    return Results(
        model=settings.model_path.resolve().name,
        data=f"{settings.dataset} ({settings.split})",
        n_examples=len(tokens),
        n_tokens=sum(len(ids) for ids in tokens),
        max_seq_len=settings.max_seq_len,
        machine=about_machine(p for name in settings.contenders if (p := CONTENDERS[name].about.package)),
    )


def measured_or_read(settings: Settings, console: Console) -> Results:
    """Return the results of a new benchmark, or those of an earlier one where these are to be shown."""
    if settings.show is not None:
        return Results.load(settings.show)
    with tempfile.TemporaryDirectory(dir=settings.scratch) as scratch, quiet_transformers():
        results = begin(settings)
        Session(settings, results, Path(scratch), console).run()
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write.

    Raises:
        SystemExit: Flags that cannot be read; or an array that was compared is not the same as ours (1).
    """
    settings = tyro.cli(Settings, args=argv, use_underscores=True, config=(tyro.conf.FlagCreatePairsOff,))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    results = measured_or_read(settings, console)
    show(results, console)
    if settings.markdown is not None:
        settings.markdown.write_text(markdown(results), encoding="utf-8")
    if settings.picture is not None:
        save_ratios(results, settings.picture)
    if not agrees(results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
