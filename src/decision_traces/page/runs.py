"""One run as the page sees it: what it is, what it has, and what is missing with the command that makes it."""

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from decision_traces.errors import DamagedRunError, DataError, NotCapturedError, ResultError, TraceError, UsageError
from decision_traces.format.analyses import (
    CHOICES_TABLE,
    CONTRIBUTION_GRID,
    LENS_GRID,
    PANELS,
    RECORD_FILE,
    RESULTS,
)
from decision_traces.format.stages import HEAD, LAYER
from decision_traces.page.columns import depth_figures, list_figures
from decision_traces.store import FileStamp, Result, ResultsPlace, TraceStore, file_stamp, find_result, places_of
from decision_traces.tasks import Task
from decision_traces.tasks.figures import Figure

if TYPE_CHECKING:
    import pyarrow as pa

    from decision_traces.analysis.grids import Grid
    from decision_traces.store import StoredArray
    from decision_traces.tasks.decisions import Kind

ROWS_PER_PART: Final = 50
VALUES_PER_PART: Final = 200_000
ANALYSIS_OF: Final = {panel.artifact: spec.name for spec, panel in PANELS.values()}
"""What a panel shows, to the analysis whose result holds it."""
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
_CACHE: Final = 32
_CACHE_BYTES: Final = 48 << 20
Made = TypeVar("Made")


def opened(run_dirs: Sequence[Path], results: Sequence[Path] = ()) -> "list[PageRun]":
    """Open runs under names that stay the same whichever others are opened beside them, so that a copied link does.

    Args:
        run_dirs: The run folders.
        results: Folders with results that are kept outside the runs; see `places_of`.

    Raises:
        RunError: One of the folders is no complete run.
        UsageError: A folder of results belongs to none of the runs.
    """
    runs: dict[str, PageRun] = {}
    for place in places_of(run_dirs, results):
        run = PageRun("", place)
        name = _UNSAFE.sub("-", run.run_id).strip("-.") or "run"
        run.key = next(key for key in _numbered(name) if key not in runs)
        runs[run.key] = run
    return list(runs.values())


def _numbered(name: str) -> Iterator[str]:
    """Yield a name, and then as often as it takes the name with a number."""
    yield name
    yield from (f"{name}.{number}" for number in count(2))


def analyses_of(place: ResultsPlace) -> tuple[tuple[str, FileStamp], ...]:
    """Return what changes when something is computed on a run anew: which files there are, and their stamps."""
    files = [*sorted(place.folder.glob("[!.]*")), *(place.result(name) / RECORD_FILE for name in RESULTS)]
    found = []
    for path in files:
        with suppress(FileNotFoundError, NotADirectoryError):  # it may be on its way out
            found.append((path.name, file_stamp(path.stat())))
    return tuple(found)


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


class PageRun:
    """A run folder behind the page, as it was when it was opened. Everything is read on first use and kept."""

    def __init__(self, key: str, place: ResultsPlace) -> None:
        """Open a run.

        Args:
            key: Its name in URLs.
            place: The folder, and where its results lie.

        Raises:
            RunError: There is no complete run.
        """
        self.key = key
        self.store = TraceStore(place.run, results=place.out)
        self.run_dir = self.store.run_dir
        self.place = self.store.results
        self.analyses = analyses_of(self.place)  # before anything of them is read
        self._lock = threading.Lock()
        self._cache: OrderedDict[Any, Any] = OrderedDict()

    @property
    def version(self) -> str:
        """What changes with the run and, behind a dot, with what was computed on it."""
        return f"{self.store.still.digest[:16]}.{_digest(self.analyses)}"

    def held(self, key: Any) -> Any:
        """Return what was made under a key lately; None where nothing was."""
        with self._lock:
            return self._cache.get(key)

    def kept(self, key: Any, make: Callable[[], Made]) -> Made:
        """Return what was made under a key lately, or make it."""
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                found: Made = self._cache[key]
                return found
        made = make()
        with self._lock:
            self._cache[key] = made
            held = sum(getattr(value, "nbytes", 0) for value in self._cache.values())
            while len(self._cache) > 1 and (len(self._cache) > _CACHE or held > _CACHE_BYTES):
                held -= getattr(self._cache.popitem(last=False)[1], "nbytes", 0)
        return made

    @cached_property
    def listed(self) -> "pa.Table":
        """The columns that the list shows."""
        row = self.task.list_row
        names = ("example_id", row.text, row.search, "text", *row.columns(self.kinds).values())
        return self.store.table(dict.fromkeys(names))

    @property
    def run_id(self) -> str:
        """The run's own name, or that of its folder."""
        return self.store.about.run_id or self.run_dir.name

    # What the run is ---------------------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        """The kind of decision that the run is about."""
        return self.store.task

    @cached_property
    def figures(self) -> list[Figure]:
        """The figures of the example list, and those that the lens left, where it can be used."""
        figures = list_figures(self.store, self.kinds)
        lens = self.result("lens")
        if lens is None:
            return figures
        try:
            with self.reading("lens"):
                return [*figures, *depth_figures(lens, self.listed.column("example_id"))]
        except ResultError:  # `missing` says so
            return figures

    @property
    def attention_name(self) -> str:
        """The self-attention of the run's main side."""
        return "enc_mc_attn" if self.task.reads_choices else f"{self.store.sides[0]}_self_attn"

    @property
    def attention(self) -> "StoredArray | None":
        """The array of attention; None where there is none that can be read, see `missing`."""
        with suppress(NotCapturedError, DamagedRunError):
            return self.store.array(self.attention_name)
        return None

    @property
    def decides(self) -> bool:
        """Whether a decoder makes one decision an example, so that lens and contributions are possible."""
        return bool(self.task.decisions) and "dec" in self.store.sides

    @cached_property
    def kinds(self) -> "tuple[Kind, ...]":
        """Which decisions of a decoder can be looked at, its own first; none where it makes none."""
        from decision_traces.analysis.decisions import kinds_of

        with suppress(UsageError, DataError):
            return kinds_of(self.store)
        return ()

    def result(self, name: str) -> Result | None:
        """Return what a command computed, None where there is nothing or nothing that can be used; see `missing`."""
        found = self._found(name)
        return None if isinstance(found, ResultError) else found

    def problem(self, name: str) -> ResultError | None:
        """Return why what a command computed cannot be used, None where it can or there is nothing."""
        found = self._found(name)
        return found if isinstance(found, ResultError) else None

    def _found(self, name: str) -> Result | ResultError | None:
        def find() -> Result | ResultError | None:
            try:
                return find_result(self.place, name)
            except ResultError as error:
                return error

        return self.kept(("result", name), find)

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Remember of a result that turns out to be damaged while it is read that it cannot be used.

        Raises:
            ResultError: It is damaged.
        """
        try:
            yield
        except ResultError as error:
            with self._lock:
                self._cache[("result", name)] = error
            raise

    def check_results(self) -> None:
        """Read all results from end to end, so that none turns out to be damaged later."""
        for name in RESULTS:
            result = self.result(name)
            if result is not None:
                with suppress(ResultError), self.reading(name):  # remembered: `missing` says so
                    result.check()

    def grid(self, name: str) -> "Grid | None":
        """Return a group of a result, None where there is none that can be used; see `missing`."""
        from decision_traces.analysis.grids import Grid

        command = ANALYSIS_OF[name]
        result = self.result(command)
        if result is None or f"{name}/zarr.json" not in result.files:
            return None
        try:
            with self.reading(command):
                return self.kept(("grid", name), lambda: Grid(result, name, self.store))
        except ResultError:  # `missing` says so
            return None

    def words(self) -> dict[int, str]:
        """Return the texts of the token ids that stand in the results."""
        return self.kept("words", lambda: {i: text for name in RESULTS for i, text in self._words(name).items()})

    def _words(self, name: str) -> dict[int, str]:
        from decision_traces.analysis.grids import read_words

        try:
            with self.reading(name):
                return read_words(self.result(name))
        except ResultError:  # `missing` says so
            return {}

    def row(self, example_id: str) -> int:
        """Return the row of an example.

        Raises:
            UnknownExampleError: There is none.
        """
        return self.store.row(example_id)

    # What is missing ---------------------------------------------------------------------------------------

    def command(self, name: str, *flags: str) -> str:
        """Return a command of this package on this run, as typed into a shell."""
        return self.place.command(name, *flags)

    def not_captured(self, name: str) -> str:
        """Return the sentence that says that an array was not captured and which flag adds it; empty if it is there."""
        try:
            self.store.array(name)
        except TraceError as error:
            return str(error)
        return ""

    def missing(self) -> dict[str, dict[str, str]]:
        """Return, by panel, why it is empty and the command that fills it (empty where no command can)."""
        found = {}
        if self.attention is None:
            found["attention"] = {"why": self.not_captured(self.attention_name), "command": ""}
        if self.grid(LENS_GRID) is None:
            found["lens"] = self._lens()
        if self.grid(CONTRIBUTION_GRID) is None:
            found["contributions"] = self._contributions()
        if self.task.choices and self.by_choice is None:
            found["by_choice"] = self._by_choice()
        return found

    @property
    def by_choice(self) -> Result | None:
        """The result that holds the lens by choice, None where there is none that can be used."""
        lens = self.result(ANALYSIS_OF[CHOICES_TABLE])
        return lens if lens is not None and CHOICES_TABLE in lens.files else None

    def _by_choice(self) -> dict[str, str]:
        return self._to_compute("by_choice")

    def _to_compute(self, panel: str, *flags: str) -> dict[str, str]:
        """Return what a panel says where its result is not there, or cannot be used, and what makes it, if anything."""
        spec, shown = PANELS[panel]
        if unmet := self._unmet(spec.name):
            return {"why": unmet, "command": ""}
        problem = self.problem(spec.name)
        return {"why": shown.not_yet if problem is None else problem.why, "command": self.command(spec.name, *flags)}

    def _unmet(self, name: str) -> str:
        """Return what an analysis needs and the run does not have, a sentence; empty where there is nothing."""
        from decision_traces.analysis.registry import ANALYSES

        def ask() -> str:
            try:
                ANALYSES[name].needs(self.store, ANALYSES[name].options())
            except TraceError as error:
                return str(error)
            return ""

        return self.kept(("needs", name), ask)

    def _lens(self) -> dict[str, str]:
        if self.task.words.no_lens:
            return {"why": self.task.words.no_lens, "command": self.command("lens")}
        if not self.decides:
            return {"why": "A lens needs a decoder that predicts tokens; this run has none.", "command": ""}
        return self._to_compute("lens", "--all_positions")

    def _contributions(self) -> dict[str, str]:
        if not self.decides and not self.task.reads_choices:
            return {"why": "Contributions need a decision; this run makes none.", "command": ""}
        flags = () if self.task.reads_choices else ("--all_positions",)
        return self._to_compute("contributions", *flags)

    def only_decisions(self, name: str) -> str:
        """Return the command that adds all positions to a group that has the decisions' alone, or an empty text."""
        grid = self.grid(name)
        if grid is None or grid.attrs.get("all_positions") or grid.attrs.get("of") == "choice":
            return ""
        if self.store.dims(self.store.sides[0]).positions != "all":
            return ""  # the run keeps no others
        return self.command(ANALYSIS_OF[name], "--all_positions")

    # Sizes -------------------------------------------------------------------------------------------------

    def attention_axes(self) -> dict[str, Any] | None:
        """Return the layers and heads that attention was kept of."""
        array = self.attention
        if array is None:
            return None
        return {"array": array.spec.name, "layers": list(array.numbers(LAYER)), "heads": list(array.numbers(HEAD))}
