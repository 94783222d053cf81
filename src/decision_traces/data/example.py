"""`Example`: one text with its identity, the only thing that leaves a data source."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

TARGET_FIELD: Final = "target_text"
"""The field that holds what the decoder of an encoder-decoder is to say."""

FieldValue = str | int | float | None | list[str]
"""A truth (bool) is an int to Python; its column keeps it apart."""


@dataclass(frozen=True, slots=True)
class Example:
    """One text of a data set.

    Attributes:
        example_id: Stable over machines, limits and sources: see `make_example_id`.
        text: The text as it goes to the tokenizer.
        fields: What else the data set has about it (kind of item, question, choices, answer, ...). Becomes
            columns of `tokens.parquet`; every example of one source carries the same keys.
    """

    example_id: str
    text: str
    fields: Mapping[str, FieldValue] = field(default_factory=lambda: MappingProxyType({}))


def make_example_id(dataset: str, split: str, row: int, text: str) -> str:
    """Return `<dataset>-<split>-<row, 6 digits>-<8 hex of the text's SHA-256>`.

    Args:
        dataset: Name of the data set as on the command line.
        split: train, validation or test.
        row: Number of the row in the published data, from 0, counting the rows that yield no example.
        text: The example's text.
    """
    digest = hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()[:8]
    return f"{dataset}-{split}-{row:06d}-{digest}"
