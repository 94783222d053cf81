"""Models that a text of some length sets to another way of computing, for good."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from decision_traces.errors import UnsupportedArchitecture
from decision_traces.model.load import LoadedModel
from decision_traces.model.modes import Modes
from decision_traces.tokens import Encoding, make_batch
from decision_traces.tracing.self_check.evidence import run_layers


def refuse_turning(loaded: LoadedModel, modes: Modes, encodings: Sequence[Encoding], pad: int) -> None:
    """Let a model stay as short rows have set it only if every row of the run would do the same.

    Args:
        loaded: The model, after it was tried on short rows.
        modes: What it was set to before.
        encodings: The rows of the run.
        pad: Id that fills padding.

    Raises:
        UnsupportedArchitecture: The longest row leaves it as it was.
    """
    turned = modes.changes()
    texts = [encoding for encoding in encodings if encoding.n_tokens]
    if not turned or not texts:
        return

    def turns(text: Encoding) -> bool:
        modes.restore()
        with torch.inference_mode():
            run_layers(loaded, make_batch([0], [text], pad))
        return modes.changes() == turned

    longest = max(texts, key=lambda text: text.n_tokens)
    if turns(longest):
        return
    short, long = 1, longest.n_tokens
    while long - short > 1:
        middle = (short + long) // 2
        short, long = (middle, long) if turns(_beginning(longest, middle)) else (short, middle)
    raise UnsupportedArchitecture(
        f"{type(loaded.model).__name__} computes texts of up to {short} tokens in another way than longer ones "
        f"({turned[0]} changes for good), and one run can hold only the former: give --max_seq_len {short} or less."
    )


def _beginning(text: Encoding, n: int) -> Encoding:
    types = None if text.type_ids is None else text.type_ids[:n]
    return replace(text, ids=text.ids[:n], offsets=text.offsets[:n], type_ids=types)


def refuse_turned(loaded: LoadedModel, modes: Modes) -> None:
    """Refuse a model that its rows set to another way of computing: the first rows differ from the last ones.

    Raises:
        UnsupportedArchitecture: Names what is not as it was.
    """
    if turned := modes.changes():
        raise UnsupportedArchitecture(
            f"{type(loaded.model).__name__} changes itself as it runs ({', '.join(turned[:3])}): what it computes "
            "depends on the texts before. Nothing was extracted."
        )
