"""Texts of others made safe to show: what a terminal would obey, or what would turn a line round, becomes visible."""

import re
from typing import Final

_OBEYED: Final = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1: every escape sequence begins with one of them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks, overrides and isolates of the direction of writing
    "\ud800-\udfff"  # halves of a character, which no output can encode
    "]"
)
_LINE_BREAKS: Final = str.maketrans({"\n": "\\n", "\t": "\\t"})


def printable(text: str) -> str:
    r"""Return a text in which what a terminal would obey is written as an escape, such as `\x1b` or `\u202e`."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str, most: int) -> str:
    """Return a text as a printable line of at most so many characters; what is cut is marked by an ellipsis."""
    line = printable(text[: most + 1]).translate(_LINE_BREAKS)
    return line if len(line) <= most else f"{line[: most - 1]}…"
