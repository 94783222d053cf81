"""Texts of others made safe to show: what a terminal would obey, or would break or turn a line, becomes visible."""

import re
from typing import Final

_OBEYED: Final = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1: every escape sequence begins with one of them, and lines end with some
    "\u2028\u2029"  # ends of a line and of a paragraph
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks, overrides and isolates of the direction of writing
    "\ud800-\udfff"  # halves of a character, which no output can encode
    "]"
)


def printable(text: str) -> str:
    r"""Return a text as one line in which what a terminal would obey is an escape, such as `\x1b`, `\n` or `\u202e`."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str, most: int) -> str:
    """Return a text as a printable line of at most so many characters; what is cut is marked by an ellipsis."""
    line = printable(text[: most + 1])
    return line if len(line) <= most else f"{line[: most - 1]}…"
