"""The deep check: some rows of a run go through the model again, one at a time, and are compared with the run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Float64, Shaped

from decision_traces.analysis.lens.unembedding import load_run_model
from decision_traces.analysis.noise import Distances, SumsInParts, apart, other_threads
from decision_traces.checks import CheckResult
from decision_traces.errors import DamagedRunError, UsageError
from decision_traces.format.arrays import ArraySpec, Side, Site
from decision_traces.format.stages import CHOICE, DEPTH, EXAMPLE, LAYER
from decision_traces.model.discovery.probe import find_structure
from decision_traces.model.load import LoadedModel
from decision_traces.model.structure import ModuleStructure
from decision_traces.store import StoredArray, TraceStore
from decision_traces.tokens import Encoding, encode_pairs, make_batch, pad_id
from decision_traces.tracing.buffers import BatchBuffers
from decision_traces.tracing.self_check.evidence import logits_of
from decision_traces.tracing.session import Session

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]
"""Arrays of one example by name, in the form in which they are stored."""


def replay_rows(
    store: TraceStore,
    n_rows: int,
    *,
    model_path: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Iterator[CheckResult]:
    """Load the model of a run, compare its weights, run sampled rows one at a time and compare with the stored arrays.

    How far they may be apart is found by running the same rows again in other ways: with another number of threads,
    with matrix products in parts, and twice in one batch. All of that changes the order of sums and nothing else.

    Args:
        store: The run.
        n_rows: How many rows to sample.
        model_path: Where the model is now, if it has moved since the run.
        device: As for extraction.
        seed: Of the sample.
        trust_remote_code: Run Python that the model brings along; what the run recorded about it does not count.

    Yields:
        The check of the weights, then one for every array with the largest relative difference.

    Raises:
        ModelError: The model cannot be loaded, or its weights are not those of the run.
        UsageError: No rows were asked for.
        DamagedRunError: The tokens of a row are not those its text gives.
    """
    if n_rows < 1:
        raise UsageError(f"--rows {n_rows}: needs at least 1.")
    attention: Literal["eager", "sdpa"] = "eager" if store.about.attention_implementation == "eager" else "sdpa"
    loaded = load_run_model(store, model_path, device, attention, trust_remote_code=trust_remote_code)
    yield CheckResult("weights are those of the run", True, 0.0, "", "SHA-256 of all weights", "model")
    replay = _Replay(store, loaded)
    rows = sorted(np.random.default_rng(seed).permutation(store.n)[:n_rows].tolist())
    for row in rows:
        for choice in range(store.n_choices or 1):
            replay.run(row, choice)
    epsilon = torch.finfo(next(loaded.model.parameters()).dtype).eps
    for name, distances in replay.found.items():
        figure, allowed, where, noise = distances.verdict(epsilon)
        detail = (
            f"of the vector's largest value, allowed {allowed:.2g} (the model's own noise is {noise:.2g}); "
            f"{len(rows)} rows run alone"
        )
        ok = figure <= allowed and isfinite(figure)
        yield CheckResult("stored equals recomputed", ok, figure, where, detail, name)


class _Replay:
    """Runs single rows of a run again."""

    def __init__(self, store: TraceStore, loaded: LoadedModel) -> None:
        self.store, self.loaded = store, loaded
        self.structure: ModuleStructure = find_structure(loaded.model, loaded.vocab_size, loaded.task)
        self.arrays = {name: store.array(name) for name in store.stored()}
        self.found = {name: Distances() for name in self.arrays}
        self.sides = {side: store.dims(side) for side in self.structure.stacks}
        self.sites: list[Site] = [site for array in self.arrays.values() for site in _sites(array)]

    def run(self, row: int, choice: int) -> None:
        """Run one row (one choice of it) by itself and in other ways, and keep how far the results are apart."""
        encoding = self._encoding(row, choice)
        if encoding.n_tokens == 0:
            return
        single = self._pass(encoding, row, choice)
        noise = {name: np.zeros(1) for name in self.arrays}
        for way, times in ((other_threads, 1), (SumsInParts, 1), (nullcontext, 2)):
            with way():
                again = self._pass(encoding, row, choice, times)
            noise = {name: np.maximum(noise[name], self._apart(again, single, name)) for name in self.arrays}
        where = self.store.example_id(row) + (f", choice {choice}" if self.store.n_choices else "")
        for name, array in self.arrays.items():
            picks: dict[str, int | slice] = {EXAMPLE: row, **({CHOICE: choice} if CHOICE in array.spec.axes else {})}
            self.found[name].add(where, self._apart({name: array.read(**picks)}, single, name), noise[name])

    def _apart(self, left: Arrays, right: Arrays, name: str) -> Float64[np.ndarray, " layers"]:
        return apart(left[name], right[name], layered=self.arrays[name].spec.layer_axis is not None)

    def _pass(self, encoding: Encoding, row: int, choice: int, times: int = 1) -> Arrays:
        """Run a row, or a batch of so many copies of it, and return every array of the first."""
        batch = make_batch(range(times), [encoding] * times, pad_id(self.loaded.tokenizer, self.loaded.embedded))
        buffers = BatchBuffers(self.sites, self.sides, "float32")
        partial_sides = {side for side, dims in self.sides.items() if dims.positions != "all"}
        slots = {side: [self._slots(row, side, choice)] * times for side in partial_sides}
        buffers.start(batch.lengths_by_side(self.sides), slots)
        with torch.inference_mode(), Session(self.loaded.model, self.structure).forward_pass(buffers):
            logits_of(self.loaded, batch)
        return {name: _like(array, buffers) for name, array in self.arrays.items()}

    def _slots(self, row: int, side: Side, choice: int) -> tuple[int, ...]:
        chosen = choice if self.store.n_choices else None
        return tuple(int(p) for p in self.store.positions(row, side=side, choice_idx=chosen))

    def _encoding(self, row: int, choice: int) -> Encoding:
        """Return what the model read, from the token table."""
        if self.store.n_choices and self.loaded.takes_types and "token_type_ids" not in self.store.columns:
            return self._pair(row, choice)
        chosen = choice if self.store.n_choices else None
        text = _encoding_of(self.store.encodings(row, chosen, side=self._sides()[0], trim=True))
        if len(self.structure.stacks) == 1:
            return text
        target = _encoding_of(self.store.encodings(row, side="dec", trim=True))
        return Encoding(text.ids, text.offsets, text.truncated, target=target)

    def _sides(self) -> Sequence[Side]:
        return tuple(self.structure.stacks)

    def _pair(self, row: int, choice: int) -> Encoding:
        """Return a question with a choice, tokenised again (older tables do not keep token types) and compared."""
        table: Any = self.store.tokens.iloc[row]
        (encoding,) = encode_pairs(
            self.loaded.tokenizer, [table["question"]], [table["choice_texts"][choice]], self.store.T
        )
        stored = self.store.encodings(row, choice, trim=True)["input_ids"]
        if not np.array_equal(stored, encoding.ids):
            raise DamagedRunError(
                f"{self.store.run_dir}: the tokens of {self.store.example_id(row)} are not what this tokenizer gives."
            )
        return encoding


def _encoding_of(columns: dict[str, Any]) -> Encoding:
    ids = np.asarray(columns["input_ids"], dtype=np.int32)
    types = columns.get("token_type_ids")
    return Encoding(
        ids,
        np.zeros((len(ids), 2), np.int32),
        truncated=False,
        type_ids=None if types is None else np.asarray(types, dtype=np.int32),
    )


def _numbers(array: StoredArray) -> tuple[int, ...]:
    axis = next((a for a in (LAYER, DEPTH) if a in array.spec.axes), None)
    return (0,) if axis is None else tuple(array.numbers(axis))


def _sites(array: StoredArray) -> list[Site]:
    dims = array.dims
    if dims is None:
        raise UsageError("--deep needs a run of format 1.1: extract it again.")
    return [array.spec.source(number, dims.n_layers) for number in _numbers(array)]


def _like(array: StoredArray, buffers: BatchBuffers) -> Float32[np.ndarray, "..."]:
    """Return what was recorded of the first row, in the form of a stored array of one example."""
    spec: ArraySpec = array.spec
    parts = [buffers.padded(site)[0].numpy() for site in _sites(array)]
    return parts[0] if spec.layer_axis is None else np.stack(parts)
