"""Rows of their real length: the rest of the certificate looks at the first tokens alone."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from decision_traces.format.arrays import site
from decision_traces.format.stages import FINAL
from decision_traces.model.load import LoadedModel
from decision_traces.model.structure import ModuleStructure
from decision_traces.tokens import Encoding, make_batch
from decision_traces.tracing.self_check import stream as stream_checks
from decision_traces.tracing.self_check.check import Check, Checked
from decision_traces.tracing.self_check.evidence import record


def whole_rows(
    loaded: LoadedModel, structure: ModuleStructure, encodings: Sequence[Encoding], pad: int, known: int
) -> Iterator[Check]:
    """Compare the last hidden state of the longest and a short row in one batch with that of each alone, in float32.

    Three forward passes over the longest row: some models turn to another way of computing at some length.

    Args:
        loaded: The model.
        structure: Where its inner path lies.
        encodings: All rows of the run.
        pad: Id that fills padding.
        known: Lengths up to which the other checks hold.
    """
    longest = max(encodings, key=lambda e: e.n_tokens)
    others = [e for e in encodings if 0 < e.n_tokens < longest.n_tokens and _mixed(e, longest, loaded.switch)]
    dtype = next(loaded.model.parameters()).dtype
    if longest.n_tokens <= known or not others or not structure.pads or dtype != torch.float32:
        return
    rows = [min(others, key=lambda e: e.n_tokens), longest]
    places = [(site(side, FINAL), 0) for side in structure.stacks]
    with torch.inference_mode():
        batches = [make_batch(range(2), rows, pad), *(make_batch([0], [row], pad) for row in rows)]
        together, *alone = (record(loaded, structure, places, batch, watched=False) for batch in batches)
    for check in stream_checks.alone(Checked(loaded, structure, together, []), alone):
        yield replace(check, name=f"{check.name}, at its whole length")


def _mixed(row: Encoding, longest: Encoding, switch: int | None) -> bool:
    """Return whether two rows may share a batch."""
    return switch is None or (row.n_tokens > switch) == (longest.n_tokens > switch)
