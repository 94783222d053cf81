"""`TraceStore`: opens a run folder and reads just what is asked for."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float

from decision_traces.errors import RunError, UsageError
from decision_traces.format.analyses import RESULTS
from decision_traces.format.stages import CHOICE, EXAMPLE, HEAD, KEY, SOURCE
from decision_traces.store.files.runs import list_runs
from decision_traces.store.reading.arrays import StoredArray
from decision_traces.store.reading.examples import ENCODINGS
from decision_traces.store.reading.gather import Position, gather
from decision_traces.store.reading.opened import OpenRun
from decision_traces.store.reading.results import ResultStatus, status_of
from decision_traces.store.reading.selection import (
    PREDICTIONS,
    RESID_STAGES,
    SIDES,
    WHICH,
    ExampleKey,
    Index,
    attention_name,
    checked_picks,
    checked_word,
)
from decision_traces.tasks.token_outcomes import outcome_of

if TYPE_CHECKING:
    import torch.utils.data
    import xarray

_KEY_AXES: Final = (KEY, SOURCE)

Trace = Float[np.ndarray, "..."]
"""Values of the stored dtype, float16 or float32."""


class TraceStore(OpenRun):
    """A run folder, open for reading.

    Opening reads `meta.json` alone. The table is read when first used and kept; arrays are sliced on disk.
    Values come as NumPy arrays of the stored dtype. Positions past an example's tokens are zero; with
    `trim=True` they are left out on the position, query and key axes. Layers and heads are the model's own
    numbers, also in runs that keep only some; negative ones count from the model's last. One that the model
    does not have, or the run does not keep, is an error and never wraps. Shapes below are those of runs that keep
    everything: with `--positions`, T is the number of kept positions (see `positions`), but for keys.

    Errors common to all accessors: `NotCapturedError` for an array the run does not have,
    `UnknownExampleError` for an unknown example, `SelectionError` for a layer, head or row outside the run,
    `UsageError` for a side, kind, stage or `which` that does not exist, and `DamagedRunError` when a file
    that holds the values is missing or not as written.

    Examples:
        >>> st = TraceStore("traces/wt2_val500_gpt2")  # doctest: +SKIP
        >>> st.resid(st.tokens.iloc[0]["example_id"], stage="post_mlp", layer=-1).shape  # doctest: +SKIP
        (256, 768)
    """

    # Decoder, and plain encoder ----------------------------------------------------------------------------

    def attn(
        self,
        eid: ExampleKey,
        side: str = "dec",
        kind: str = "self",
        layer: Index | None = None,
        head: Index | None = None,
        *,
        trim: bool = False,
    ) -> Trace:
        """Return attention probabilities, (query, key): (T, T), with layer and head in front unless named.

        With `kind="cross"`, the queries are of the decoder and the keys of the encoder.
        """
        return self._read(attention_name(side, kind, "attn"), eid, layer, head, trim=trim)

    def attn_out(
        self, eid: ExampleKey, side: str = "dec", kind: str = "self", layer: Index | None = None, *, trim: bool = False
    ) -> Trace:
        """Return what attention adds to the residual stream: (L, T, d_model), or (T, d_model) at one layer."""
        return self._read(attention_name(side, kind, "attn_out"), eid, layer, trim=trim)

    def head_out(
        self,
        eid: ExampleKey,
        side: str = "dec",
        kind: str = "self",
        layer: Index | None = None,
        head: Index | None = None,
        *,
        trim: bool = False,
    ) -> Trace:
        """Return each query head's output, what the output projection reads: (T, d_value), layer and head in front."""
        return self._read(attention_name(side, kind, "head_out"), eid, layer, head, trim=trim)

    def mlp_out(self, eid: ExampleKey, side: str = "dec", layer: Index | None = None, *, trim: bool = False) -> Trace:
        """Return what the MLP adds to the residual stream: (L, T, d_model), or (T, d_model) at one layer."""
        return self._read(f"{checked_word(side, SIDES, 'side')}_mlp_out", eid, layer, trim=trim)

    def mlp_act(self, eid: ExampleKey, side: str = "dec", layer: Index | None = None, *, trim: bool = False) -> Trace:
        """Return the MLP's hidden activations, what its last projection reads: (L, T, d_mlp), or (T, d_mlp)."""
        return self._read(f"{checked_word(side, SIDES, 'side')}_mlp_act", eid, layer, trim=trim)

    def router(self, eid: ExampleKey, side: str = "dec", layer: Index | None = None, *, trim: bool = False) -> Trace:
        """Return the router's probabilities of all experts: (L, T, n_experts), or (T, n_experts) at one layer.

        L counts the layers that have a router, where not all have one; `layer` is the model's own number.
        """
        return self._read(f"{checked_word(side, SIDES, 'side')}_router", eid, layer, trim=trim)

    def logits(self, eid: ExampleKey, side: str = "dec", *, trim: bool = False) -> Trace:
        """Return the logits over the vocabulary at every position: (T, vocab)."""
        return self._read(f"{checked_word(side, SIDES, 'side')}_logits", eid, trim=trim)

    def qkv(
        self,
        eid: ExampleKey,
        which: str = "q",
        side: str = "dec",
        kind: str = "self",
        layer: Index | None = None,
        head: Index | None = None,
        *,
        trim: bool = False,
    ) -> Trace:
        """Return queries, keys or values: (T, d_head), with layer and head axes in front unless named.

        For `which="k"` and `"v"`, `head` counts key-value heads, as stored: with grouped queries there are
        `n_kv_heads` of them, and query head h reads from h // (H // n_kv_heads). With `kind="cross"`, k and v are
        of the encoder's tokens.
        """
        name = attention_name(side, kind, checked_word(which, WHICH, "which"))
        return self._read(name, eid, layer, head, trim=trim)

    def hidden(self, eid: ExampleKey, side: str = "dec", layer: Index | None = None, *, trim: bool = False) -> Trace:
        """Return hidden states: (L+1, T, d_model), or (T, d_model) at one depth of 0 (embedding) to L."""
        return self._read(f"{checked_word(side, SIDES, 'side')}_hidden", eid, layer, trim=trim)

    def resid(
        self,
        eid: ExampleKey,
        stage: str = "post_mlp",
        side: str = "dec",
        layer: Index | None = None,
        *,
        trim: bool = False,
    ) -> Trace:
        """Return the residual stream at one stage: (L, T, d_model), or (T, d_model) at one layer.

        `stage` is `pre_attn` (input of the layer), `post_attn`, `post_cross` (decoders with cross-attention) or
        `post_mlp` (output of the layer).
        """
        name = f"{checked_word(side, SIDES, 'side')}_res_{checked_word(stage, RESID_STAGES[side], 'stage')}"
        return self._read(name, eid, layer, trim=trim)

    def resid_embed(self, eid: ExampleKey, side: str = "dec", *, trim: bool = False) -> Trace:
        """Return the embedding output that the residual stream starts from: (T, d_model)."""
        return self._read(f"{checked_word(side, SIDES, 'side')}_res_embed", eid, trim=trim)

    # Multiple choice ---------------------------------------------------------------------------------------

    def mcq_attn(
        self,
        eid: ExampleKey,
        choice_idx: Index,
        layer: Index | None = None,
        head: Index | None = None,
        *,
        trim: bool = False,
    ) -> Trace:
        """Return the attention probabilities of one choice; see `attn`."""
        return self._read("enc_mc_attn", eid, layer, head, choice_idx, trim=trim)

    def mcq_qkv(
        self,
        eid: ExampleKey,
        choice_idx: Index,
        which: str = "q",
        layer: Index | None = None,
        head: Index | None = None,
        *,
        trim: bool = False,
    ) -> Trace:
        """Return the queries, keys or values of one choice; see `qkv`."""
        return self._read(f"enc_mc_{checked_word(which, WHICH, 'which')}", eid, layer, head, choice_idx, trim=trim)

    def mcq_hidden(
        self, eid: ExampleKey, choice_idx: Index, layer: Index | None = None, *, trim: bool = False
    ) -> Trace:
        """Return the hidden states of one choice; see `hidden`."""
        return self._read("enc_mc_hidden", eid, layer, choice=choice_idx, trim=trim)

    def mcq_resid(
        self,
        eid: ExampleKey,
        choice_idx: Index,
        stage: str = "post_mlp",
        layer: Index | None = None,
        *,
        trim: bool = False,
    ) -> Trace:
        """Return the residual stream of one choice; see `resid`."""
        name = f"enc_mc_res_{checked_word(stage, RESID_STAGES['enc'], 'stage')}"
        return self._read(name, eid, layer, choice=choice_idx, trim=trim)

    def mcq_resid_embed(self, eid: ExampleKey, choice_idx: Index, *, trim: bool = False) -> Trace:
        """Return the embedding output of one choice; see `resid_embed`."""
        return self._read("enc_mc_res_embed", eid, choice=choice_idx, trim=trim)

    def mcq_attn_out(
        self, eid: ExampleKey, choice_idx: Index, layer: Index | None = None, *, trim: bool = False
    ) -> Trace:
        """Return what attention adds to the stream of one choice; see `attn_out`."""
        return self._read("enc_mc_attn_out", eid, layer, choice=choice_idx, trim=trim)

    def mcq_head_out(
        self,
        eid: ExampleKey,
        choice_idx: Index,
        layer: Index | None = None,
        head: Index | None = None,
        *,
        trim: bool = False,
    ) -> Trace:
        """Return the heads' outputs of one choice; see `head_out`."""
        return self._read("enc_mc_head_out", eid, layer, head, choice_idx, trim=trim)

    def mcq_mlp_out(
        self, eid: ExampleKey, choice_idx: Index, layer: Index | None = None, *, trim: bool = False
    ) -> Trace:
        """Return what the MLP adds to the stream of one choice; see `mlp_out`."""
        return self._read("enc_mc_mlp_out", eid, layer, choice=choice_idx, trim=trim)

    def mcq_mlp_act(
        self, eid: ExampleKey, choice_idx: Index, layer: Index | None = None, *, trim: bool = False
    ) -> Trace:
        """Return the MLP's hidden activations of one choice; see `mlp_act`."""
        return self._read("enc_mc_mlp_act", eid, layer, choice=choice_idx, trim=trim)

    def mcq_router(
        self, eid: ExampleKey, choice_idx: Index, layer: Index | None = None, *, trim: bool = False
    ) -> Trace:
        """Return the router's probabilities of one choice; see `router`."""
        return self._read("enc_mc_router", eid, layer, choice=choice_idx, trim=trim)

    # What was predicted ------------------------------------------------------------------------------------

    def outcome(self, eid: ExampleKey, kind: str = "next") -> dict[str, Any]:
        """Return a prediction of an example: that of the text's last token, or of what comes after the text.

        Args:
            eid: example_id or row.
            kind: "next", made at `n_tokens - 2`, or "after", made at the last token; its truth is not known.

        Returns:
            `pos` (-1 where a text is too short) and the columns of `token_outcomes.parquet`: `pred_id`, `pred_token`,
            `pred_prob`, `entropy` (nats), `margin` (logits), `topk_ids`, …; None for what is not known.

        Raises:
            UsageError: The run has no such prediction.
        """
        name = f"{checked_word(kind, PREDICTIONS, 'prediction')}_pos"
        if name not in self.columns:
            raise UsageError(f"{self.run_dir} has no prediction {kind!r}: its table has no column {name}.")
        return outcome_of(self.record(eid), kind)

    # Many examples at once ---------------------------------------------------------------------------------

    def gather(
        self,
        name: str,
        layer: Index | None = None,
        head: Index | None = None,
        position: Position = "next",
    ) -> Trace:
        """Read one position of every example: what a probe or a lens needs, in one pass over the files.

        Args:
            name: Array as `arrays()` calls it.
            layer: Layer (or depth); the whole axis where left out.
            head: Head (key-value head for k and v); the whole axis where left out.
            position: `"next"`: where the run's prediction was made (`next_pos`, or `answer_pos`); `"last"`: the
                last token; an int: that token of every example, negative ones counting from its last token; or
                one position per example, (N,) or (N, C), where -1 means none. For attention it picks the query
                row.

        Returns:
            (N, [C,] [L,] [H,] d), with d the last axis of the array (T for attention). Rows of examples that
            have no token at the position are NaN.

        Raises:
            SelectionError: The layer, head or position is outside the array, or the run does not keep it.
            UsageError: The array has no head axis, or the run no one position of its prediction.
        """
        return gather(self.array(name), self._examples, self._picks(self.array(name), layer, head), position)

    def padded(self, column: str, side: str = "dec") -> np.ndarray:
        """Return a column of tokens of all examples as one array, filled up to T; the table holds tokens alone.

        Args:
            column: `input_ids`, `attention_mask`, `token_type_ids`, `offset_mapping` or `tokens`.
            side: Whose tokens; matters for encoder-decoders alone.

        Returns:
            (N, T), of offsets (N, T, 2); with the axis of the choices after N in multiple-choice runs.

        Raises:
            UsageError: It is another column.
            DamagedRunError: The run has no such column, or it is damaged.
        """
        reading = self._reading(side)
        return self._examples.padded(checked_word(column, ENCODINGS, "column"), reading, self._padding(reading))

    def to_xarray(self, name: str) -> "xarray.DataArray":
        """Return an array with labelled axes; values are read when indexed, without dask.

        Coordinates: `example` (example_id), `n_tokens` along it, the model's own numbers on layer, depth and
        head axes, and token positions on position, query and key axes. Where each example keeps a position of
        its own (`--positions next` or `last`), these are `token_position` (example, position) instead.
        """
        from decision_traces.store.reading.labelled import labelled

        return labelled(self.array(name), self._examples)

    def torch_dataset(
        self, name: str, layer: Index | None = None, head: Index | None = None
    ) -> "torch.utils.data.Dataset[dict[str, Any]]":
        """Return one array as a map-style PyTorch data set over the examples.

        An item is a dict of `values` (a tensor of the stored dtype), `mask` (True where a token stands in the slot
        of the position axis), `example_id` and `row`. It works with worker processes, forked or spawned.
        """
        from decision_traces.store.reading.torch_data import TraceDataset

        return TraceDataset(self, name, self._picks(self.array(name), layer, head))

    def analyses(self) -> dict[str, ResultStatus]:
        """Return, by analysis, whether its result is there, what it holds, and the command that computes it."""
        return {name: status_of(self.results, name) for name in RESULTS}

    # Looking at it -----------------------------------------------------------------------------------------

    def _picks(
        self, array: StoredArray, layer: Index | None, head: Index | None, choice: Index | None = None
    ) -> dict[str, int]:
        n_heads = (self._size("num_heads", (HEAD,)) or 0) if array.dims is None else array.dims.n_heads
        return checked_picks(array, n_heads, layer=layer, head=head, choice=choice)

    def _read(
        self,
        name: str,
        eid: ExampleKey,
        layer: Index | None = None,
        head: Index | None = None,
        choice: Index | None = None,
        *,
        trim: bool,
    ) -> Trace:
        """Read one example of one array; every accessor ends here."""
        array = self.array(name)
        row = self.row(eid)
        picks: dict[str, int | slice] = {EXAMPLE: row, **self._picks(array, layer, head, choice)}
        if not trim:
            return array.read(**picks)
        at = (row, picks[CHOICE]) if isinstance(picks.get(CHOICE), int) and self.n_choices else row
        for axis in _KEY_AXES:
            if axis in array.spec.axes:
                spans = array.slots(axis).spans
                picks[axis] = slice(int(spans.start[at]), int(spans.stop[at]))
        if array.position_axis in picks:
            return array.read(**picks)
        held = np.flatnonzero(array.slots(array.position_axis).at(at) >= 0)
        low, high = (int(held[0]), int(held[-1]) + 1) if len(held) else (0, 0)
        picks[array.position_axis] = slice(low, high)
        values = array.read(**picks)
        if len(held) == high - low:
            return values
        place = sum(not isinstance(picks.get(a), int) for a in array.spec.axes[: array.spec.position_axis])
        there: Trace = np.take(values, held - low, axis=place)
        return there


def newest_run(root: str | PathLike[str] = "traces") -> Path:
    """Return the newest complete run under a folder.

    Raises:
        RunError: There is none.
    """
    newest = next((run for run in list_runs(root) if run.complete), None)
    if newest is None:
        raise RunError(f"No complete run under {root}. `decision-traces demo` makes one in a minute.")
    return newest.path
