"""A session: forward passes of a model whose stages are read and written by name.

    with Session(model, find_structure(model, model.config.vocab_size)) as session:
        clean = session.run({"input_ids": ids}, read=[("dec.mlp_out", 1)])
        halved = Edit.scale(0.5, positions=3)
        changed = session.run({"input_ids": ids}, write={("dec.mlp_out", 1): halved})
        print(clean[("dec.mlp_out", 1)].shape, (changed.logits - clean.logits).abs().max())

A site is (side.stage, layer): `("dec.post_mlp", 4)` is the state of a decoder's stream behind layer 4; `embed` and
`final` have layer 0. Which stages a model has, its structure says; whether one can be written, `Session.refusal`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from decision_traces.errors import SelectionError, UsageError
from decision_traces.format.arrays import Side, Site, side_of, stage_of
from decision_traces.format.stages import STAGES
from decision_traces.model.discovery.intercept import Watcher
from decision_traces.model.structure import ModuleStructure
from decision_traces.tracing.edits import Change, Edit, edits_of
from decision_traces.tracing.recorder import Hook, Reader, Recorder
from decision_traces.tracing.writes import Writes, unreadable, write_point


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """What one forward pass gave.

    Attributes:
        outputs: What the model returned.
        activations: Site to a copy, on the model's device and in its type: the stream and what is added to it (rows,
            positions, d_model); `mlp_act` (rows, positions, d_mlp); `q`, `head_out` (rows, heads, positions, d_head);
            `k`, `v` (rows, key-value heads, positions, d_head); `attn` (rows, heads, queries, keys). Behind a row's
            tokens stands what the model computed at padding.
    """

    outputs: Any
    activations: Mapping[Site, Tensor]

    def __getitem__(self, at: Site) -> Tensor:
        """Return the activation of a site."""
        return self.activations[at]

    @property
    def logits(self) -> Tensor:
        """The model's logits: (rows, positions, vocabulary), or (rows, 1) of a multiple-choice model."""
        logits: Tensor = self.outputs.logits
        return logits


class Session(AbstractContextManager["Session"]):
    """Runs a model, reading and writing its stages.

    Inside the `with` block the model is in evaluation mode; it gets its modes back at the end. A session can be entered
    again while it is open, and a function of an edit may run the model: hooks are there during one pass alone.
    """

    def __init__(self, model: nn.Module, structure: ModuleStructure) -> None:
        """Prepare.

        Args:
            model: The model.
            structure: Where its stages lie (`find_structure`).
        """
        self.model, self.structure = model, structure
        self._depth = 0
        self._training: list[nn.Module] = []
        self._recorders: list[Recorder] = []

    def __enter__(self) -> "Session":
        """Set the model to evaluation mode."""
        if self._depth == 0:
            self._training = [module for module in self.model.modules() if module.training]
            for module in self._training:
                module.training = False
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        """Give the model its modes back."""
        self._depth -= 1
        if self._depth == 0:
            for module in self._training:
                module.training = True
            self._training = []

    def refusal(self, at: Site) -> str | None:
        """Return why a site cannot be written; None where it can."""
        point = write_point(self.structure, at)
        return point if isinstance(point, str) else None

    def run(
        self,
        batch: Mapping[str, Any],
        read: Iterable[Site] = (),
        write: Mapping[Site, Change] | None = None,
        *,
        gradients: bool = False,
    ) -> ForwardPass:
        """Run the model once.

        Args:
            batch: The arguments of its forward, by name: what a tokenizer returns, on any device.
            read: The sites whose activations are wanted. Where one is written as well, what was written is read.
            write: Site to what is done there: an `Edit`, several in this order, or a function of the activation.
            gradients: Follow the computation for a backward pass, as through a tensor that an edit adds.

        Raises:
            UsageError: A site is not there to be read, or an edit has another shape than what it changes.
            SelectionError: A row, head or position is not there, or is padding.
            WriteError: A site cannot be written, or a write reached nothing; the message names the reason.
        """
        inputs = self._inputs(batch)
        writes = self._writes(write)
        tokens = _tokens(inputs, self.structure)
        for at, edits in writes.edits.items():
            for edit in edits:
                _require_tokens(at, edit, tokens)
        kept = _Kept(self._readable(read), inputs["input_ids"].shape[:-1].numel())
        recorder = Recorder(self.model, self.structure, kept, writes=writes)
        with torch.set_grad_enabled(gradients), self._alone(), self._hooked(recorder):
            outputs = self.model(**inputs)
        return ForwardPass(outputs, kept.activations)

    @contextmanager
    def forward_pass(
        self,
        reader: Reader,
        *,
        write: Mapping[Site, Change] | None = None,
        watch: Watcher | None = None,
        beside: Iterable[Hook] = (),
    ) -> Iterator[None]:
        """Read and write the one forward pass that is made inside the block, however it is made.

        Args:
            reader: Where activations go as they are computed (`BatchBuffers`, say), and how many rows there are.
            write: As for `run`.
            watch: Sees every attention call; what it returns takes the place of the call's output.
            beside: Other places of the model to read.

        Raises:
            CaptureError: After the pass, if a site did not fire exactly once, or a write was not made.
            WriteError: A site cannot be written.
        """
        writes = self._writes(write)
        with self._hooked(Recorder(self.model, self.structure, reader, watch, writes=writes, beside=beside)):
            yield

    # -- what a pass needs -----------------------------------------------------------------------------------

    @contextmanager
    def _hooked(self, recorder: Recorder) -> Iterator[None]:
        with self, recorder.recording():
            self._recorders.append(recorder)
            try:
                yield
            finally:
                self._recorders.remove(recorder)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the passes that are open already out of one that is made in between."""
        paused = [recorder for recorder in self._recorders if not recorder.paused]
        for recorder in paused:
            recorder.paused = True
        try:
            yield
        finally:
            for recorder in paused:
                recorder.paused = False

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        device = next(self.model.parameters()).device
        inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        if "input_ids" not in inputs:
            raise UsageError(f"A batch needs input_ids, and has {', '.join(inputs) or 'nothing'}.")
        ids = inputs["input_ids"]
        if not isinstance(ids, Tensor) or ids.dim() < 2 or not ids.numel():
            given = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
            raise UsageError(f"input_ids are {given}, and must be a tensor (rows, positions).")
        known = signature(self.model.forward).parameters
        return {"use_cache": False, **inputs} if "use_cache" in known else inputs

    def _readable(self, sites: Iterable[Site]) -> frozenset[Site]:
        wanted = frozenset(map(_site, sites))
        for at in sorted(wanted):
            reason = unreadable(self.structure, at)
            if reason is not None:
                raise UsageError(f"{at[0]} of layer {at[1]} cannot be read: {reason}.")
        return wanted

    def _writes(self, write: Mapping[Site, Change] | None) -> Writes:
        """Return the writes of a pass, which must not touch the weights' memory."""
        edits = {_site(at): edits_of(change) for at, change in (write or {}).items()}
        tensors = (*self.model.parameters(), *self.model.buffers()) if edits else ()
        return Writes(self.structure, edits, frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors))


def _site(at: Site) -> Site:
    """Return a site.

    Raises:
        UsageError: It is none.
    """
    if not (isinstance(at, tuple) and len(at) == 2 and isinstance(at[0], str) and isinstance(at[1], int)):
        raise UsageError(f"{at!r} is no site: give pairs (side.stage, layer), such as ('dec.post_mlp', 4).")
    return at


class _Kept:
    """A reader that keeps copies on the device."""

    def __init__(self, sites: frozenset[Site], n_rows: int) -> None:
        self.sites, self.n_rows = sites, n_rows
        self.names = frozenset(name for name, _ in sites)
        self.activations: dict[Site, Tensor] = {}

    def put(self, name: str, layer: int, value: Tensor) -> None:
        """Keep a copy."""
        self.activations[name, layer] = value.clone()


def _tokens(inputs: Mapping[str, Any], structure: ModuleStructure) -> dict[Side, Tensor]:
    """Return where each side has tokens, (rows, positions), where the batch says so."""
    names: dict[Side, str] = {"enc": "attention_mask", "dec": "attention_mask"}
    if len(structure.stacks) > 1:
        names["dec"] = "decoder_attention_mask"
    masks = {side: inputs[name] for side, name in names.items() if isinstance(inputs.get(name), Tensor)}
    return {side: mask.reshape(-1, mask.shape[-1]).bool().cpu() for side, mask in masks.items()}


def _require_tokens(at: Site, edit: Edit, tokens: Mapping[Side, Tensor]) -> None:
    """Raise where a position is chosen that is padding: nothing reads it.

    Raises:
        SelectionError: Names row and position.
    """
    mask = tokens.get("enc" if STAGES[stage_of(at[0])].of_source else side_of(at[0]))
    if mask is None or edit.positions is None:
        return
    rows = torch.arange(len(mask)) if edit.rows is None else torch.as_tensor(edit.rows).reshape(-1)
    positions = torch.as_tensor(edit.positions).cpu()
    each = positions if positions.dim() == 2 else positions.reshape(1, -1).expand(len(rows), -1)
    for row, chosen in zip(rows.tolist(), each.tolist(), strict=False):
        for position in chosen:
            if 0 <= row < len(mask) and 0 <= position < mask.shape[1] and not mask[row, position]:
                raise SelectionError(f"{at[0]} of layer {at[1]}: position {position} of row {row} is padding.")
