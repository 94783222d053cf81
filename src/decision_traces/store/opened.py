"""A run folder as it lies there: meta, sizes, examples and arrays, each read on first use."""

from collections.abc import Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from decision_traces.errors import DamagedRunError, RunError, UsageError
from decision_traces.schema import (
    ARRAYS,
    CHOICE,
    D_HEAD,
    D_MODEL,
    DEPTH,
    EXAMPLE,
    HEAD,
    KV_HEAD,
    LAYER,
    POSITION,
    QUERY,
)
from decision_traces.store.arrays import RUST_PIPELINE, StoredArray, is_stored, open_array
from decision_traces.store.examples import Examples
from decision_traces.store.folder import FileRecord, read_manifest, read_meta
from decision_traces.store.runs import portable_path
from decision_traces.store.selection import ExampleKey, Index, checked_index, not_captured
from decision_traces.store.table import Spans

if TYPE_CHECKING:
    import pandas


class OpenRun:
    """What a run folder holds. `TraceStore` adds the accessors."""

    def __init__(self, run_dir: str | PathLike[str], *, codec_pipeline: str = RUST_PIPELINE) -> None:
        """Open a run folder.

        Args:
            run_dir: The folder, `traces/<RUN_ID>`.
            codec_pipeline: Zarr codec pipeline that decodes whole files, by dotted name.

        Raises:
            RunError: There is no complete run.
            DamagedRunError: `meta.json` is not readable.
        """
        self.run_dir: Path = portable_path(run_dir)
        self.meta: dict[str, Any] = read_meta(self.run_dir)
        self._pipeline = codec_pipeline
        self._open: dict[str, StoredArray] = {}
        self._examples = Examples(self.run_dir, self._expected)

    def __repr__(self) -> str:
        """Say which run this is, without reading more of it."""
        said = {key: self.meta.get(key, "?") for key in ("model", "dataset", "split", "n_examples")}
        about = "{model} on {dataset}/{split}, {n_examples} examples".format_map(said)
        words = " ".join(map(str, self.meta.get("capture") or []))
        return f"TraceStore({str(self.run_dir)!r}: {about}, captured {words or 'nothing'})"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the place of the run and nothing that is open."""
        return {"run_dir": self.run_dir, "codec_pipeline": self._pipeline}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Open the run again."""
        self.__init__(**state)  # type: ignore[misc]

    @property
    def tokens(self) -> "pandas.DataFrame":
        """`tokens.parquet`: one row per example, row i being index i of every array."""
        return self._examples.frame

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names of `tokens.parquet`."""
        return tuple(self._examples.table.column_names)

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every array the run has, by name, in the schema's order."""
        return {name: self.array(name).shape for name in self.stored()}

    def has(self, name: str) -> bool:
        """Return whether the run has the array of this name."""
        return name in ARRAYS and is_stored(self.run_dir, ARRAYS[name])

    @property
    def n(self) -> int:
        """Number of examples."""
        return self._size("n_examples", (EXAMPLE,)) or self._examples.table.num_rows

    @property
    def T(self) -> int:
        """Positions on the position axis, padding included."""
        return self._known("max_seq_len", (POSITION, QUERY))

    @property
    def L(self) -> int:
        """Number of layers."""
        if self._size("", (LAYER,)) is None and (depths := self._size("", (DEPTH,))) is not None:
            return depths - 1
        return self._known("num_layers", (LAYER,))

    @property
    def H(self) -> int:
        """Number of query heads."""
        return self._known("num_heads", (HEAD,))

    @property
    def n_kv_heads(self) -> int:
        """Number of key and value heads; equals `H` unless queries are grouped."""
        return self._size("num_kv_heads", (KV_HEAD,)) or self.H

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self._known("head_dim", (D_HEAD,))

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self._known("d_model", (D_MODEL,))

    @property
    def n_choices(self) -> int | None:
        """Choices per example of a multiple-choice run, else None."""
        return self._size("n_choices", (CHOICE,))

    @property
    def arch(self) -> str:
        """dec, enc or encdec."""
        if arch := self.meta.get("arch"):
            return str(arch)
        sides = {name.split("_")[0] for name in self.stored()}
        return "encdec" if len(sides) > 1 else next(iter(sides), "dec")

    def _size(self, key: str, axes: tuple[str, ...]) -> int | None:
        """Return a size from the arrays, which cannot be wrong about it, or else from the meta."""
        for name, spec in ARRAYS.items():
            for axis in set(axes).intersection(spec.axes):
                if self.has(name):
                    return self.array(name).size(axis)
        value = self.meta.get(key)
        return value if isinstance(value, int) else None

    def _known(self, key: str, axes: tuple[str, ...]) -> int:
        size = self._size(key, axes)
        if size is None:
            raise RunError(f"{self.run_dir} does not say its {key}: neither its arrays nor its meta has it.")
        return size

    # Examples ----------------------------------------------------------------------------------------------

    def row(self, eid: ExampleKey) -> int:
        """Return the row of an example, given by example_id or by row number."""
        return self._examples.row(eid)

    @property
    def spans(self) -> Spans:
        """Where each example's tokens lie on the position axis."""
        return self._examples.spans

    def example_id(self, row: Index) -> str:
        """Return the example_id of a row."""
        return str(self._examples.ids[self.row(row)])

    def text(self, eid: ExampleKey) -> str:
        """Return an example's text as it went to the tokenizer."""
        return self._examples.text(self.row(eid))

    def n_tokens(self, eid: ExampleKey) -> int | Int[np.ndarray, " choices"]:
        """Return how many tokens an example has; one number per choice in multiple-choice runs."""
        counts = self._examples.spans.n_tokens[self.row(eid)]
        return counts if counts.ndim else int(counts)

    def encodings(self, eid: ExampleKey, choice_idx: Index | None = None, *, trim: bool = False) -> dict[str, Any]:
        """Return how an example was tokenised.

        Args:
            eid: example_id or row.
            choice_idx: One choice of a multiple-choice run; all of them where left out.
            trim: Leave padding out.

        Returns:
            `input_ids` (T,), `attention_mask` (T,), `offset_mapping` (T, 2) and `tokens`, a list of T
            strings; with a choice level in front in multiple-choice runs.
        """
        choice = None if choice_idx is None else checked_index(choice_idx, self.n_choices or 1, "choice_idx")
        return self._examples.encodings(self.row(eid), choice, trim=trim)

    def array(self, name: str) -> StoredArray:
        """Return one array as stored, opened on first use, for reading by axis name.

        Raises:
            UsageError: The format has no array of this name.
            NotCapturedError: The run did not capture it.
            DamagedRunError: The run should have it and it is missing or changed.
        """
        if name in self._open:
            return self._open[name]
        if name not in ARRAYS:
            raise UsageError(f"No array is called {name!r}. This run has: {', '.join(self.stored())}.")
        spec, promised = ARRAYS[name], self.meta.get("arrays") or {}
        if not is_stored(self.run_dir, spec):
            if name in promised:
                raise DamagedRunError(f"{self.run_dir / spec.path} is missing, though the meta lists {name}.")
            raise not_captured(spec, self.stored(), self.meta.get("capture") or ())
        expected = self._expected(f"{spec.path}/zarr.json")
        stored = open_array(
            self.run_dir, spec, lambda: self._examples.spans, expected=expected, pipeline=self._pipeline
        )
        shape = promised.get(name, {}).get("shape", stored.shape)
        if tuple(shape) != stored.shape:
            raise DamagedRunError(f"{stored.folder} has shape {stored.shape}, the meta says {tuple(shape)}.")
        self._open[name] = stored
        return stored

    @cached_property
    def _n_heads(self) -> int:
        return self._size("num_heads", (HEAD,)) or 0

    @cached_property
    def _manifest(self) -> dict[str, FileRecord]:
        return read_manifest(self.run_dir)

    def _expected(self, file: str) -> FileRecord | None:
        return self._manifest.get(file)

    def stored(self) -> list[str]:
        """Return the names of the arrays the run has, in the schema's order."""
        return [name for name in ARRAYS if self.has(name)]
