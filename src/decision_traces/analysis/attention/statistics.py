"""What every attention head of a run looks at: six figures per example, layer and head, and per head."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64

from decision_traces.analysis.attention.patterns import ATTENTION_FIGURES, Repetitions, measure_heads, repetitions_of
from decision_traces.analysis.columns import read_columns
from decision_traces.analysis.moments import nan_mean
from decision_traces.analysis.requirements import need_whole
from decision_traces.errors import DataError, UsageError
from decision_traces.format.lists import Spans
from decision_traces.format.stages import EXAMPLE, HEAD, LAYER
from decision_traces.store import TraceStore, rows_per_step

ATTENTION_ARRAYS: Final = ("dec_self_attn", "enc_self_attn", "enc_mc_attn")


@dataclass(frozen=True, slots=True)
class AttentionStatistics:
    """Six figures of every head on every example; NaN where an example has no query row to measure one on.

    Let p[q, k] be the stored probability that query token q gives to key token k, 0-based, padding left out.
    Rows are taken as stored and not renormalised: where a model sends probability to a learned sink a row sums
    below 1, masses are shares of the whole, and the entropy is that of the part on tokens.

    - `attn_entropy`: -Σ_k p ln p in nats; rows that can look at more than one key (decoders: q ≥ 1; encoders:
      all rows of texts with two tokens or more).
    - `attn_distance`: Σ_k p |q - k| in tokens; the same rows.
    - `previous_mass`: p[q, q-1]; rows q ≥ 1.
    - `first_mass`: p[q, 0], the attention sink of Xiao et al. 2023; rows q ≥ 1.
    - `same_mass`: Σ p over earlier positions (k < q) that hold the query's own token; rows whose token has
      occurred before.
    - `induction_mass`: Σ p over earlier positions (k < q) that come right after an earlier occurrence of the
      query's token (prefix matching, Olsson et al. 2022); rows that have such a position. The query itself is
      never counted, even where its token repeats the one before.

    Each is the mean over its rows. "Earlier" is meant in encoders too, so that figures of both kinds compare.

    Attributes:
        row: (n,) row of the example in `tokens.parquet`.
        example_id: (n,) the examples; in multiple-choice runs each once per choice.
        choice: (n,) the choice, or None in runs without choices.
        values: (figure, n, layer, head) in the order of `ATTENTION_FIGURES`.
    """

    row: Int64[np.ndarray, " n"]
    example_id: tuple[str, ...]
    choice: Int64[np.ndarray, " n"] | None
    values: Float32[np.ndarray, "figure n layer head"]

    def __post_init__(self) -> None:
        """Check that all fields speak of the same examples."""
        n = self.values.shape[1]
        if self.values.shape[0] != len(ATTENTION_FIGURES):
            raise ValueError(f"values need {len(ATTENTION_FIGURES)} figures, got {self.values.shape[0]}")
        if {len(self.row), len(self.example_id), n if self.choice is None else len(self.choice)} != {n}:
            raise ValueError(f"row, example_id and choice need {n} entries")

    def figure(self, name: str) -> Float32[np.ndarray, "n layer head"]:
        """Return one of `ATTENTION_FIGURES`."""
        values: np.ndarray = self.values[ATTENTION_FIGURES.index(name)]
        return values

    def by_example(self) -> "AttentionStatistics":
        """Return one entry per example: the mean over its choices where it has any, each of the same weight."""
        if self.choice is None or len(self.row) == 0:
            return self
        rows, first = np.unique(self.row, return_index=True)
        order = np.lexsort((self.choice, self.row))
        shape = (len(ATTENTION_FIGURES), len(rows), -1, *self.values.shape[2:])
        means = nan_mean(self.values[:, order].reshape(shape), axis=2)
        return AttentionStatistics(rows, tuple(self.example_id[i] for i in first), None, means)

    def per_head(self) -> "HeadMeans":
        """Return the mean over the run: every example counts the same, whatever its length."""
        values = self.by_example().values
        return HeadMeans(nan_mean(values, axis=1), np.isfinite(values).sum(1).astype(np.int64))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per (example, layer, head), or (example, choice, layer, head)."""
        _, n, n_layers, n_heads = self.values.shape
        columns: dict[str, object] = {
            "example_id": np.repeat(np.asarray(self.example_id, dtype=object), n_layers * n_heads)
        }
        if self.choice is not None:
            columns["choice"] = np.repeat(self.choice, n_layers * n_heads)
        columns["layer"] = np.tile(np.repeat(np.arange(n_layers), n_heads), n)
        columns["head"] = np.tile(np.arange(n_heads), n * n_layers)
        return pd.DataFrame(columns | {name: self.figure(name).ravel() for name in ATTENTION_FIGURES})


@dataclass(frozen=True, slots=True)
class HeadMeans:
    """The six figures of every head, averaged over a run; see `AttentionStatistics` for what they are.

    Attributes:
        values: (figure, layer, head) means in the order of `ATTENTION_FIGURES`; NaN where no example has any.
        n_examples: (figure, layer, head) examples behind each mean.
    """

    values: Float32[np.ndarray, "figure layer head"]
    n_examples: Int64[np.ndarray, "figure layer head"]

    def __post_init__(self) -> None:
        """Check that both fields speak of the same heads."""
        if self.values.shape != self.n_examples.shape or len(self.values) != len(ATTENTION_FIGURES):
            raise ValueError(f"both fields need one shape, with {len(ATTENTION_FIGURES)} figures in front")

    def figure(self, name: str) -> Float32[np.ndarray, "layer head"]:
        """Return one of `ATTENTION_FIGURES`."""
        values: np.ndarray = self.values[ATTENTION_FIGURES.index(name)]
        return values

    def to_frame(self) -> pd.DataFrame:
        """Return one row per (layer, head): the figures, then `n_<figure>` examples behind each."""
        _, n_layers, n_heads = self.values.shape
        columns = {"layer": np.repeat(np.arange(n_layers), n_heads), "head": np.tile(np.arange(n_heads), n_layers)}
        counts = {f"n_{name}": self.n_examples[i].ravel() for i, name in enumerate(ATTENTION_FIGURES)}
        return pd.DataFrame(columns | {name: self.figure(name).ravel() for name in ATTENTION_FIGURES} | counts)


def attention_statistics(
    store: TraceStore, name: str | None = None, *, progress: Callable[[int, int], None] | None = None
) -> AttentionStatistics:
    """Measure what every head of a run looks at; see `AttentionStatistics` for the figures.

    Memory: the result, one part of the stored attention (64 MB of one layer, or one example of it where that is
    more), and one example of one layer in float32.

    Args:
        store: A run that captured `attn`.
        name: `dec_self_attn`, `enc_self_attn` or `enc_mc_attn`; the first that the run has, where left out.
        progress: Called with (examples × layers done, of how many).

    Raises:
        NotCapturedError: The run did not capture attention.
        UsageError: `name` is no attention of a text to itself, or the run does not keep all layers, heads and positions
            of it.
        DataError: The run does not say its token ids.
    """
    array = store.array(attention_array(store) if name is None else _checked(name))
    need_whole(array, "what a head looks at", positions=True)
    column, spans = f"{store.token_prefix(array.spec.side)}input_ids", array.spans
    if column not in store.columns:
        raise DataError(f"{store.run_dir} has no {column}: which tokens are alike is not known.")
    ids = read_columns(store, (column,)).column(column)
    n, n_layers, n_heads = array.size(EXAMPLE), array.size(LAYER), array.size(HEAD)
    per = spans.start[:1].size if n else 1
    values = np.full((n * per, n_layers, n_heads, len(ATTENTION_FIGURES)), np.nan, np.float32)
    step = rows_per_step(array, {LAYER: 0})
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        texts = _texts(spans, ids.slice(start, rows.stop - start).to_pylist(), rows)
        repeats = [repetitions_of(t.input_ids, causal=array.spec.name.startswith("dec_")) for t in texts]
        for layer in range(n_layers):
            part = array.read(example=rows, layer=layer)
            values[start * per : rows.stop * per, layer] = _measure(part, texts, repeats)
            if progress is not None:
                progress(start * n_layers + (rows.stop - start) * (layer + 1), n * n_layers)
    return AttentionStatistics(
        row=np.repeat(np.arange(n), per),
        example_id=tuple(store.example_id(row) for row in range(n) for _ in range(per)),
        choice=np.tile(np.arange(per), n) if spans.start.ndim > 1 else None,
        values=np.ascontiguousarray(np.moveaxis(values, -1, 0)),
    )


def attention_array(store: TraceStore) -> str:
    """Return the name of a run's attention array, or of the one it would have: reading that names what is there."""
    side = store.sides[0]
    expected = "enc_mc_attn" if store.task.reads_choices else f"{side}_self_attn"
    return next((name for name in ATTENTION_ARRAYS if store.has(name)), expected)


def _checked(name: str) -> str:
    if name not in ATTENTION_ARRAYS:
        raise UsageError(f"No head statistics of {name!r}: they are made of {', '.join(ATTENTION_ARRAYS)}.")
    return name


@dataclass(frozen=True, slots=True)
class _Text:
    """The tokens of one example, or of one choice of it, and where they begin on the position axis."""

    begin: int
    input_ids: Int64[np.ndarray, " n_tokens"]


def _texts(spans: Spans, stored: list[list[Any]], rows: slice) -> list[_Text]:
    """Return the texts of some rows, choice after choice, without padding."""
    start, stop = spans.start[rows].ravel(), spans.stop[rows].ravel()
    each = stored if spans.start.ndim == 1 else [choice for row in stored for choice in row]
    return [
        _Text(int(begin), np.asarray(ids, dtype=np.int64)[begin:end])
        for ids, begin, end in zip(each, start, stop, strict=True)
    ]


def _measure(
    part: np.ndarray, texts: list[_Text], repeats: list[Repetitions]
) -> Float32[np.ndarray, "text head figure"]:
    """Measure all heads of one layer on some texts, whose attention is (example, [choice,] head, query, key)."""
    measured = []
    for attn, text, where in zip(part.reshape(len(texts), *part.shape[-3:]), texts, repeats, strict=True):
        tokens = slice(text.begin, text.begin + where.n)
        measured.append(measure_heads(attn[:, tokens, tokens], where))
    return np.stack(measured)
