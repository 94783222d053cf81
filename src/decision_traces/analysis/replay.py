"""The deep check: some rows of a run once more through the model, each alone, against what was stored."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from decision_traces.analysis.unembedding import load_run_model
from decision_traces.capture.buffers import BatchBuffers
from decision_traces.capture.check import TOLERANCE, relative_difference
from decision_traces.capture.evidence import logits_of
from decision_traces.capture.recorder import Recorder
from decision_traces.errors import DamagedRunError, UsageError
from decision_traces.models.anatomy import Anatomy
from decision_traces.models.load import LoadedModel
from decision_traces.models.probe import find_anatomy
from decision_traces.schema import CHOICE, DEPTH, EXAMPLE, LAYER, ArraySpec, Side, Site
from decision_traces.store.arrays import StoredArray
from decision_traces.store.checks import CheckResult
from decision_traces.store.reader import TraceStore
from decision_traces.tokens import Encoding, encode_pairs, make_batch, pad_id

_ROUNDING: Final = {"float16": 2.0**-9, "float32": 0.0}
"""What storing may add: two neighbouring values of the storage type."""


def replay_rows(
    store: TraceStore,
    n_rows: int,
    *,
    model_path: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Iterator[CheckResult]:
    """Load the model of a run, compare its weights, and run sampled rows alone against the stored arrays.

    Args:
        store: The run.
        n_rows: How many rows to sample.
        model_path: Where the model lies now, if not where it lay then.
        device: As for extraction.
        seed: Of the sample.
        trust_remote_code: Run Python that the model brings along; what the run says of it does not count.

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
    worst: dict[str, tuple[float, str]] = {name: (0.0, "") for name in store.stored()}
    for row in rows:
        for choice in range(store.n_choices or 1):
            for name, figure in replay.differences(row, choice):
                where = store.example_id(row) + (f", choice {choice}" if store.n_choices else "")
                worst[name] = max(worst[name], (figure, where))
    allowed = TOLERANCE[next(loaded.model.parameters()).dtype] + _ROUNDING[store.about.dtype or "float32"]
    for name, (figure, where) in worst.items():
        detail = f"relative difference, allowed {allowed:.2g}; {len(rows)} rows run alone"
        yield CheckResult("stored equals recomputed", figure <= allowed, figure, where, detail, name)


class _Replay:
    """Runs single rows of a run again."""

    def __init__(self, store: TraceStore, loaded: LoadedModel) -> None:
        self.store, self.loaded = store, loaded
        self.anatomy: Anatomy = find_anatomy(loaded.model, loaded.vocab_size, loaded.task)
        self.arrays = {name: store.array(name) for name in store.stored()}
        self.sides = {side: store.dims(side) for side in self.anatomy.stacks}
        self.places: list[Site] = [place for array in self.arrays.values() for place in _places(array)]

    def differences(self, row: int, choice: int) -> Iterator[tuple[str, float]]:
        """Yield every array with the largest relative difference of one row (of one choice of it)."""
        encoding = self._encoding(row, choice)
        if encoding.n_tokens == 0:
            return
        batch = make_batch([0], [encoding], pad_id(self.loaded.tokenizer, self.loaded.embedded))
        buffers = BatchBuffers(self.places, self.sides, "float32")
        slots = {side: [self._slots(row, side, choice)] for side, dims in self.sides.items() if dims.positions != "all"}
        buffers.start(batch.lengths_by_side(self.sides), slots)
        with torch.inference_mode(), Recorder(self.loaded.model, self.anatomy, buffers).recording():
            logits_of(self.loaded, batch)
        for name, array in self.arrays.items():
            picks: dict[str, int | slice] = {EXAMPLE: row}
            if CHOICE in array.spec.axes:
                picks[CHOICE] = choice
            stored = torch.from_numpy(array.read(**picks).astype(np.float32))
            fresh = _like(array, buffers).to(getattr(torch, str(array.dtype))).float()
            pairs = [(stored, fresh)] if array.spec.layer_axis is None else zip(stored, fresh, strict=True)
            yield name, max((relative_difference(a, b) for a, b in pairs), default=0.0)

    def _slots(self, row: int, side: Side, choice: int) -> tuple[int, ...]:
        chosen = choice if self.store.n_choices else None
        return tuple(int(p) for p in self.store.positions(row, side=side, choice_idx=chosen))

    def _encoding(self, row: int, choice: int) -> Encoding:
        """Return what the model read, from the token table."""
        if self.store.n_choices and self.loaded.takes_types and "token_type_ids" not in self.store.columns:
            return self._pair(row, choice)
        chosen = choice if self.store.n_choices else None
        text = _encoding_of(self.store.encodings(row, chosen, side=self._sides()[0], trim=True))
        if len(self.anatomy.stacks) == 1:
            return text
        target = _encoding_of(self.store.encodings(row, side="dec", trim=True))
        return Encoding(text.ids, text.offsets, text.truncated, target=target)

    def _sides(self) -> Sequence[Side]:
        return tuple(self.anatomy.stacks)

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


def _places(array: StoredArray) -> list[Site]:
    dims = array.dims
    if dims is None:
        raise UsageError("--deep needs a run of format 1.1: extract it again.")
    return [array.spec.source(number, dims.n_layers) for number in _numbers(array)]


def _like(array: StoredArray, buffers: BatchBuffers) -> Tensor:
    """Return what was recorded, in the form of a stored array of one example."""
    spec: ArraySpec = array.spec
    parts = [buffers.padded(place)[0] for place in _places(array)]
    return parts[0] if spec.layer_axis is None else torch.stack(parts)
