"""Results for every position of an example, kept in `RUN/analysis/` as Zarr groups: what the page reads, without torch.

An analysis of one decision an example fits a table; one of every position, layer and candidate does not. These groups
open with any Zarr v3 reader. Row i of every array is row i of `tokens.parquet`; slot j of an example is the token
position `positions[i, j]`, -1 where the slot is empty (padding, or a position without a decision).
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import zarr

from decision_traces.errors import RunError
from decision_traces.schema import ANALYSIS_DIR, DEPTH, EXAMPLE, HEAD, LAYER
from decision_traces.store.reader import TraceStore
from decision_traces.store.table import read_table, write_table

LENS_GRID: Final = "lens.zarr"
CONTRIBUTION_GRID: Final = "contributions.zarr"
WORDS_FILE: Final = "words.parquet"
SLOT, CANDIDATE, TOP, PART = "slot", "candidate", "top", "part"
_SHARD_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class GridArray:
    """One array of a group.

    Attributes:
        name: Its key in the group.
        axes: Zarr `dimension_names`.
        dtype: As stored.
        doc: What it holds.
    """

    name: str
    axes: tuple[str, ...]
    dtype: str
    doc: str


_PLACES: Final = (
    GridArray("positions", (EXAMPLE, SLOT), "int32", "token position of each slot; -1: empty"),
    GridArray(
        "candidates",
        (EXAMPLE, SLOT, CANDIDATE),
        "int32",
        "token ids (choices, of an encoder): first the target, which is the true one, or where the truth is not known "
        "the predicted one; at the answer of a question then its choices in order; then the most probable tokens at "
        "the end of the model, best first; -1: none",
    ),
)
_STATE: Final = (EXAMPLE, DEPTH, SLOT)
LENS_ARRAYS: Final = (
    *_PLACES,
    GridArray("known", (EXAMPLE, SLOT), "int8", "1 where the target is the true token, 0 where the truth is not known"),
    GridArray("prob", _STATE, "float32", "probability of the target"),
    GridArray("rank", _STATE, "int32", "one more than the number of tokens with a larger logit than the target"),
    GridArray("entropy", _STATE, "float32", "entropy of the whole distribution, nats"),
    GridArray("kl", _STATE, "float32", "KL divergence of the final distribution from this one, nats"),
    GridArray("top_ids", (*_STATE, TOP), "int32", "most probable tokens, best first"),
    GridArray("top_probs", (*_STATE, TOP), "float16", "their probabilities"),
    GridArray("candidate_probs", (*_STATE, CANDIDATE), "float16", "probability of each candidate"),
)
CONTRIBUTION_ARRAYS: Final = (
    *_PLACES,
    GridArray(
        "parts",
        (EXAMPLE, SLOT, CANDIDATE, PART),
        "float32",
        "what each part adds to the lead of the target over the candidate, logits; parts as the attribute `parts` "
        "names them. The lead of one candidate over another is the difference of their rows",
    ),
    GridArray("heads", (EXAMPLE, SLOT, CANDIDATE, LAYER, HEAD), "float32", "the same of each head; may be absent"),
)


def part_names(n_layers: int) -> list[str]:
    """Return the names along the `part` axis: embed, attn 0, mlp 0, attn 1, …, remainder."""
    return ["embed", *(f"{kind} {layer}" for layer in range(n_layers) for kind in ("attn", "mlp")), "remainder"]


@dataclass(slots=True)
class GridWriter:
    """Writes one group, some consecutive examples at a time; it takes its name when it is complete.

    Attributes:
        path: Where the group will lie.
        arrays: Its arrays.
        sizes: Size of every axis.
        rows: Examples that are written at a time, but for the last.
    """

    path: Path
    arrays: tuple[GridArray, ...]
    sizes: Mapping[str, int]
    rows: int
    _group: zarr.Group | None = field(default=None, init=False)

    def __enter__(self) -> "GridWriter":
        """Create the empty group under another name.

        Raises:
            RunError: The folder cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self._partial, ignore_errors=True)
            group = zarr.open_group(self._partial, mode="w", zarr_format=3)
            for array in self.arrays:
                shape = tuple(self.sizes[axis] for axis in array.axes)
                inner = (1 if self.sizes[SLOT] > 1 else self.rows, *shape[1:])
                made = group.create_array(
                    array.name,
                    shape=shape,
                    dtype=array.dtype,
                    chunks=tuple(max(1, n) for n in inner),
                    shards=tuple(max(1, n) for n in (self.rows, *shape[1:])),
                    dimension_names=array.axes,
                    fill_value=0,
                )
                made.attrs["doc"] = array.doc
        except OSError as error:
            raise RunError(f"{self.path} cannot be written ({error.strerror or error}).") from error
        self._group = group
        return self

    def write(self, rows: slice, values: Mapping[str, np.ndarray]) -> None:
        """Write some examples of every array."""
        assert self._group is not None
        for name, part in values.items():
            array = self._group[name]
            assert isinstance(array, zarr.Array)
            array[rows] = part

    def finish(self, attributes: Mapping[str, Any]) -> Path:
        """Add attributes and give the group its name, in place of an older one."""
        assert self._group is not None
        self._group.attrs.update(attributes)
        shutil.rmtree(self.path, ignore_errors=True)
        self._partial.rename(self.path)
        return self.path

    def __exit__(self, *failure: object) -> None:
        """Take away what was not finished."""
        shutil.rmtree(self._partial, ignore_errors=True)

    @property
    def _partial(self) -> Path:
        return self.path.with_name(f".{self.path.name}.partial")


def rows_at_once(row_bytes: int, n: int) -> int:
    """Return how many examples to work on at a time: a few MB of them."""
    return max(1, min(256, n, _SHARD_BYTES // max(1, row_bytes)))


def open_grid(run_dir: Path, name: str) -> zarr.Group | None:
    """Open a group of a run's analysis folder; None where the run does not have it."""
    folder = run_dir / ANALYSIS_DIR / name
    return zarr.open_group(folder, mode="r") if (folder / "zarr.json").is_file() else None


def read_words(run_dir: Path) -> dict[int, str]:
    """Return the texts of token ids that the analyses met, empty where none ran."""
    path = run_dir / ANALYSIS_DIR / WORDS_FILE
    if not path.is_file():
        return {}
    table = read_table(path)
    return dict(zip(table.column("id").to_pylist(), table.column("text").to_pylist(), strict=True))


def write_words(store: TraceStore, ids: np.ndarray, tokenizer: Any | None) -> Path:
    """Write the text of every id, beside those that are there already, and return the file.

    Args:
        store: The run.
        ids: Token ids, any shape; negative ones are none.
        tokenizer: The model's, where it could be had; without it, ids that the run's own table does not explain
            are left out.
    """
    words = read_words(store.run_dir)
    unknown = [int(i) for i in np.unique(ids) if i >= 0 and int(i) not in words]
    if tokenizer is not None:
        words |= {i: str(tokenizer.decode([i])) for i in unknown}
    else:
        words |= {i: text for i, text in _table_words(store).items() if i in set(unknown)}
    path = store.run_dir / ANALYSIS_DIR / WORDS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, pa.table({"id": pa.array(words.keys(), pa.int32()), "text": pa.array(words.values())}))
    return path


def _table_words(store: TraceStore) -> dict[int, str]:
    if not {"next_topk_ids", "next_topk_tokens"} <= set(store.columns):
        return {}
    frame = store.tokens[["next_topk_ids", "next_topk_tokens"]].dropna()
    return {
        int(i): text
        for ids, texts in zip(frame["next_topk_ids"], frame["next_topk_tokens"], strict=True)
        for i, text in zip(ids, texts, strict=True)
    }
