"""A run folder as it lies there: meta, sizes, examples and arrays, each read on first use."""

import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from decision_traces.errors import (
    DamagedRunError,
    NewerFormatWarning,
    RandomHeadWarning,
    UncertifiedWarning,
    UsageError,
)
from decision_traces.format.arrays import ARRAYS, OUTCOMES_FILE, TOKENS_FILE, ArraySpec, Side
from decision_traces.format.lists import Spans
from decision_traces.format.meta import RunMeta
from decision_traces.format.stages import KEY, SOURCE
from decision_traces.paths import portable_path
from decision_traces.printable import printable
from decision_traces.store.files.conform import check_outcomes_of
from decision_traces.store.files.folder import FileRecord, read_manifest, read_meta
from decision_traces.store.files.proof import found_run
from decision_traces.store.files.results_place import ResultsPlace
from decision_traces.store.files.table import TableFile
from decision_traces.store.reading.about import newer, random_head, read_about, uncertified
from decision_traces.store.reading.arrays import StoredArray, is_stored, open_array
from decision_traces.store.reading.examples import Examples, Padding
from decision_traces.store.reading.selection import SIDES, ExampleKey, Index, checked_index, checked_word, not_captured
from decision_traces.store.reading.sizes import RunSizes
from decision_traces.store.reading.slots import Slots
from decision_traces.store.reading.still import StillThere
from decision_traces.tasks import Task

if TYPE_CHECKING:
    import pandas
    import pyarrow


class OpenRun(RunSizes):
    """What a run folder holds. `TraceStore` adds the accessors."""

    def __init__(
        self,
        run_dir: str | PathLike[str],
        *,
        results: str | PathLike[str] | None = None,
        lenient: bool = False,
    ) -> None:
        """Open a run folder.

        Args:
            run_dir: The folder, `traces/<RUN_ID>`.
            results: Where the results of analyses lie or will lie (`--out`); `analysis/` in the run where left out.
            lenient: Open a run whose `meta.json` has fields that do not fit, as checks do; see `read_about`.

        Raises:
            RunError: There is no complete run, or it is of a format that this package does not know.
            DamagedRunError: `meta.json` is not readable.
        """
        self.run_dir: Path = portable_path(run_dir)
        found_run(self.run_dir)
        self.results: ResultsPlace = ResultsPlace(self.run_dir, None if results is None else portable_path(results))
        self.still = StillThere(self.run_dir)
        self.meta: dict[str, Any] = read_meta(self.run_dir)
        self.still.check()
        self.about: RunMeta = read_about(self.run_dir, self.meta, lenient=lenient)
        if (said := newer(self.about)) is not None:
            warnings.warn(said, NewerFormatWarning, stacklevel=2)
        if self.about.uncertified:
            warnings.warn(uncertified(self.about), UncertifiedWarning, stacklevel=2)
        if self.about.random_head:
            warnings.warn(random_head(self.about), RandomHeadWarning, stacklevel=2)
        self._open: dict[str, StoredArray] = {}
        super().__init__()
        self._checked: set[Side] = set()  # whose spans are
        self._rows = Examples(self.run_dir, self._expected, self.still, self.about.objective)

    def __repr__(self) -> str:
        """Say which run this is, without reading more of it."""
        about = self.about
        n = "?" if about.n_examples is None else about.n_examples
        said = f"{about.model or '?'} on {about.dataset or '?'}/{about.split or '?'}, {n} examples"
        trust = ", NOT CERTIFIED" * about.uncertified + ", RANDOM HEAD" * about.random_head
        words = " ".join(about.capture) or "nothing"
        return printable(f"{type(self).__name__}({str(self.run_dir)!r}: {said}, captured {words}{trust})")

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the place of the run and nothing that is open."""
        return {"run_dir": self.run_dir, "results": self.results.out}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Open the run again."""
        self.__init__(**state)  # type: ignore[misc]

    @property
    def _examples(self) -> Examples:
        """The examples, also those read before, as long as the run is the one that was opened."""
        self.still.check()
        return self._rows

    @property
    def task(self) -> Task:
        """Kind of decision of the run."""
        return self._examples.task

    @property
    def tokens(self) -> "pandas.DataFrame":
        """`tokens.parquet`: one row per example, row i being index i of every array."""
        return self._examples.frame

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names of `tokens.parquet`."""
        return self._examples.names

    @property
    def schema(self) -> "pyarrow.Schema":
        """Names and types of the columns of `tokens.parquet`."""
        return self._examples.schema

    def table(self, names: Iterable[str]) -> "pyarrow.Table":
        """Return those of some columns that `tokens.parquet` has, and read nothing else of it."""
        return self._examples.table(names)

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every array the run has, by name, in the schema's order."""
        return {name: self.array(name).shape for name in self.stored()}

    def has(self, name: str) -> bool:
        """Return whether the run has the array of this name."""
        with self.still:
            return name in ARRAYS and is_stored(self.run_dir, ARRAYS[name])

    # Examples ----------------------------------------------------------------------------------------------

    def row(self, eid: ExampleKey) -> int:
        """Return the row of an example, given by example_id or by row number."""
        return self._examples.row(eid)

    @property
    def spans(self) -> Spans:
        """Where each example's tokens lie on the position axis of the main side."""
        return self.spans_of(self.sides[0])

    def spans_of(self, side: Side) -> Spans:
        """Return where each example's tokens lie on one side; the same for both unless each has its own tokens."""
        spans = self._examples.spans(side)
        told = self._told(side)
        if told is not None and side not in self._checked:
            lead = (told.n_examples,) if self.about.n_choices is None else (told.n_examples, self.about.n_choices)
            self._check_spans(spans, lead, told.n_positions)
            self._checked.add(side)
        return spans

    def token_prefix(self, side: Side) -> str:
        """Return what the token columns of a side begin with: `dec_` for a decoder that reads other tokens."""
        return self._examples.prefix(side)

    def example_id(self, row: Index) -> str:
        """Return the example_id of a row."""
        return str(self._examples.ids[self.row(row)])

    def text(self, eid: ExampleKey) -> str:
        """Return an example's text as it went to the tokenizer."""
        return self._examples.text(self.row(eid))

    def outcomes(self, eid: ExampleKey) -> "pyarrow.Table | None":
        """Return the outcome at every position of an example; None in runs without `--all_positions`."""
        row = self.row(eid)
        with self.still:
            if self._outcomes is None:
                return None
            return check_outcomes_of(self._outcomes.read(where=("row", row)), self._outcomes.path)

    @cached_property
    def _outcomes(self) -> TableFile | None:
        path, expected = self.run_dir / OUTCOMES_FILE, self._expected(OUTCOMES_FILE)
        return TableFile(path, expected) if path.is_file() or expected is not None else None

    def record(self, eid: ExampleKey) -> dict[str, Any]:
        """Return an example's row of `tokens.parquet` as Python values; the table is not made a data frame for it."""
        return self._examples.record(self.row(eid))

    def n_tokens(self, eid: ExampleKey, side: str = "dec") -> int | Int[np.ndarray, " choices"]:
        """Return how many tokens an example has; one number per choice in multiple-choice runs.

        `side` matters for encoder-decoders alone, whose two sides read different tokens.
        """
        counts = self.spans_of(self._reading(side)).n_tokens[self.row(eid)]
        return counts if counts.ndim else int(counts)

    def encodings(
        self, eid: ExampleKey, choice_idx: Index | None = None, side: str = "dec", *, trim: bool = False
    ) -> dict[str, Any]:
        """Return how an example was tokenised.

        Args:
            eid: example_id or row.
            choice_idx: One choice of a multiple-choice run; all of them where left out.
            side: Whose tokens; matters for encoder-decoders alone.
            trim: Leave padding out.

        Returns:
            `input_ids` (T,), `attention_mask` (T,), `offset_mapping` (T, 2) and `tokens`, a list of T
            strings; `token_type_ids` (T,) where the model was told; with a choice level in front in
            multiple-choice runs. What an encoder-decoder's decoder read has no offsets.
        """
        choice = None if choice_idx is None else checked_index(choice_idx, self.n_choices or 1, "choice_idx")
        reading = self._reading(side)
        return self._examples.encodings(self.row(eid), choice, reading, None if trim else self._padding(reading))

    def _padding(self, side: Side) -> Padding:
        return Padding(self.dims(side).n_positions, self.about.pad_id, self.about.pad_token)

    def positions(
        self, eid: ExampleKey, side: str = "dec", choice_idx: Index | None = None
    ) -> Int[np.ndarray, "*choices slots"]:
        """Return which token position stands in each slot of the position axis, -1 where no token does.

        In ordinary runs these are 0, 1, … up to the last token; in a run of `--positions next` the one position
        where the prediction was made. With a choice level in front in multiple-choice runs, unless one is named.
        `side` matters for encoder-decoders alone.
        """
        choice = None if choice_idx is None else checked_index(choice_idx, self.n_choices or 1, "choice_idx")
        row = self.row(eid)
        reading = self._reading(side)
        return self._side_slots(reading).at(row if choice is None or not self.n_choices else (row, choice))

    def _reading(self, side: str) -> Side:
        """Return the side whose tokens are meant: the run's one side, whatever was said, where there is but one."""
        name: Side = "dec" if checked_word(side, SIDES, "side") == "dec" else "enc"
        return name if name in self.sides else self.sides[0]

    def _side_slots(self, side: Side) -> Slots:
        dims = self.dims(side)
        chosen = self._examples.prediction(side) if dims.positions == "next" else None
        return Slots(dims.positions, dims.n_positions, self.spans_of(side), chosen)

    def _slots(self, spec: ArraySpec, axis: str) -> Slots:
        """Return what stands on one of an array's position axes; keys are never selected among."""
        everything = axis in {KEY, SOURCE} or self._told(spec.side) is None
        if not everything:
            return self._side_slots(spec.side)
        side: Side = "enc" if axis in {KEY, SOURCE} and spec.across else spec.side
        array, spans = self.array(spec.name), self.spans_of(side)
        self._check_spans(spans, array.shape[: spans.start.ndim], array.size(axis))
        return Slots("all", array.size(axis), spans)

    def _check_spans(self, spans: Spans, lead: tuple[int, ...], n_positions: int) -> None:
        """Raise where the table has other rows than the arrays, or tokens outside of them."""
        if spans.start.shape != lead:
            raise DamagedRunError(
                f"{self.run_dir / TOKENS_FILE} is damaged: it counts the tokens of {spans.start.shape} texts, "
                f"the run holds {lead}."
            )
        if spans.start.size and not 0 <= spans.start.min() <= spans.stop.max() <= n_positions:
            raise DamagedRunError(
                f"{self.run_dir / TOKENS_FILE} is damaged: it has texts of {spans.stop.max()} tokens, "
                f"the run holds {n_positions} positions."
            )

    def array(self, name: str) -> StoredArray:
        """Return one array as stored, opened on first use, for reading by axis name.

        Raises:
            UsageError: The format has no array of this name.
            NotCapturedError: The run did not capture it.
            DamagedRunError: The run should have it and it is missing or changed.
        """
        if name not in ARRAYS:
            raise UsageError(f"No array is called {name!r}. This run has: {', '.join(self.stored())}.")
        if name not in self._open:
            with self.still:
                self._open[name] = self._opened(name)
        return self._open[name]

    def _opened(self, name: str) -> StoredArray:
        spec, promised = ARRAYS[name], self.about.arrays
        if not is_stored(self.run_dir, spec):
            if name in promised:
                raise DamagedRunError(f"{self.run_dir / spec.path} is missing, though the meta lists {name}.")
            raise not_captured(spec, self.stored(), self.about)
        told = self._told(spec.side)
        expected = self._expected(f"{spec.path}/zarr.json")
        stored = open_array(
            self.run_dir,
            spec,
            lambda axis: self._slots(spec, axis),
            self.still,
            dims=told,
            expected=expected,
        )
        noted = promised[name].shape if name in promised else None
        for shape in (noted, None if told is None else told.shape(spec)):
            if shape is not None and shape != stored.shape:
                raise DamagedRunError(f"{stored.folder} has shape {stored.shape}, the meta says {shape}.")
        return stored

    @cached_property
    def _manifest(self) -> dict[str, FileRecord]:
        with self.still:
            return read_manifest(self.run_dir)

    def _expected(self, file: str) -> FileRecord | None:
        return self._manifest.get(file)

    def stored(self) -> list[str]:
        """Return the names of the arrays the run has, in the schema's order."""
        return [name for name in ARRAYS if self.has(name)]
