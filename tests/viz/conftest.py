"""What pictures write, as matplotlib has it."""

from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Return a function that gives every text of the pictures saved; none is a formula, or longer than 200."""
    saved: list[Figure] = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), original(self, *a, **k))[1])

    def texts() -> list[str]:
        found: list[Any] = [text for figure in saved for text in figure.findobj(Text)]
        assert not any(text.get_parse_math() for text in found)
        assert max(len(text.get_text()) for text in found) <= 200
        return [text.get_text() for text in found]

    return texts
