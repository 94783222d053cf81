"""The page in a notebook: framed, from a server of this process; and one example as a still picture."""

import html
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from decision_traces.page.serve import PageServer, listen
from decision_traces.store import ExampleKey, ResultsPlace

if TYPE_CHECKING:
    from decision_traces.store import TraceStore

_HEIGHT: Final = 860
_servers: dict[ResultsPlace, PageServer] = {}


class PageFrame:
    """The page in an inline frame; a notebook shows it as the value of a cell.

    Attributes:
        url: Where the page is, for a window of its own.
        height: Of the frame, in pixels.
    """

    def __init__(self, url: str, height: int = _HEIGHT) -> None:
        """Remember the address."""
        self.url = url
        self.height = height

    def __repr__(self) -> str:
        """Say the address."""
        return f"PageFrame({self.url!r})"

    def _repr_html_(self) -> str:
        address = html.escape(self.url, quote=True)
        return (
            f'<iframe src="{address}" width="100%" height="{self.height}" style="border:1px solid #ccc" '
            f'title="decision traces"></iframe><br><a href="{address}" target="_blank">open in a window</a>'
        )


def view(store: "TraceStore", example: ExampleKey | None = None, height: int = _HEIGHT) -> PageFrame:
    """Serve a run from this process, on this machine alone, and return a frame that shows it.

    A run is served once; the server ends with the process.

    Args:
        store: The run.
        example: The example to begin with, by example_id or row.
        height: Of the frame, in pixels.
    """
    out = store.results.out
    place = ResultsPlace(store.run_dir.resolve(), None if out is None else out.resolve())
    if place not in _servers:
        server = listen([place.run], results=[] if place.out is None else [place.out])
        server.start()
        _servers[place] = server
    url = _servers[place].entrance
    query = "" if example is None else "&" + urlencode({"ex": store.example_id(store.row(example))})
    return PageFrame(url + query, height)
