"""The one door to the terminal: texts are data there, so nothing in them is obeyed, by rich or by the terminal."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from decision_traces.printable import printable


class DataConsole(Console):
    """A console without markup, emoji names and highlighting, on which control characters are seen and do nothing.

    A text is one line of its own: one that ends a line is a call of `print` more, or a row of a table.
    """

    def __init__(self, **options: Any) -> None:
        """Make a console.

        Args:
            **options: As for rich's own console.
        """
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text as rich measures and wraps it: one line, already as wide as it will be."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is written; rich's own control codes (of bars) and line ends (of tables) stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(_printable_lines(segment.text), segment.style)


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))
