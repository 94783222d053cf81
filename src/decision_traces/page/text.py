"""Tokens as readers see them: cut out of the text by their offsets, not as the tokenizer spells them."""

from collections.abc import Mapping
from typing import Any, Final

_SPELLED: Final = {"Ġ": " ", "▁": " ", "Ċ": "\n"}
_GOES_ON: Final = "⋯"


def shown_tokens(row: Mapping[str, Any], texts: tuple[str, ...], start: int, stop: int) -> list[str]:
    """Return the tokens from `start` to `stop` as they stand in the text.

    Args:
        row: `tokens`, and where the run has them `offset_mapping` and `sequence_ids`, from position 0 on.
        texts: The texts that offsets speak of, by sequence id.
        start: First token.
        stop: One past the last.
    """
    spelled = row["tokens"]
    offsets, parts = row.get("offset_mapping"), row.get("sequence_ids")
    shown: list[str] = []
    before: tuple[int, int, int] | None = None
    for i in range(start, stop):
        part = 0 if parts is None else int(parts[i])
        a, b = (0, 0) if offsets is None else map(int, offsets[i])
        cut = texts[part][a:b] if 0 <= part < len(texts) and b > a else ""
        again = cut != "" and (part, a, b) == before  # one character in several tokens, as an emoji's bytes are
        shown.append(_GOES_ON if again else cut or plain(str(spelled[i])))
        before = part, a, b
    return shown


def plain(token: str) -> str:
    """Return a token without the marks of byte-level and SentencePiece spelling."""
    for mark, means in _SPELLED.items():
        token = token.replace(mark, means)
    return token
