"""WikiText-2 and WikiText-103: paragraphs of Wikipedia articles (Merity et al. 2016).

Row numbers are line numbers of the published files, which are the row numbers on the hub. Empty lines yield no
example; headings do, as on the hub, unless `skip_headings` is asked for. The raw form is taken where it is there,
else the tokens form (with <unk>).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Final

from decision_traces.data import formats
from decision_traces.data.example import Example, FieldValue
from decision_traces.data.formats import Row, take
from decision_traces.data.published import NOTHING, Published

_FILE_SPLITS: Final = {"train": "train", "validation": "valid", "test": "test"}
_HEADING: Final = re.compile(r"((?:= )+)\S.*?((?: =)+)")


def without_headings(rows: Iterable[Example | None]) -> Iterator[Example]:
    """Yield the examples that are no headings.

    A heading stands between equally many = and alone between empty lines: formulas broken over lines also begin
    and end with =, but have neighbours.

    Args:
        rows: All rows in order; None is an empty line.
    """
    before: Example | None = None
    here: Example | None = None
    for after in chain(rows, (None,)):
        alone = before is None and after is None
        if here is not None and not (alone and _is_marked(here.text)):
            yield here
        before, here = here, after


def _is_marked(text: str) -> bool:
    match = _HEADING.fullmatch(text)
    return match is not None and len(match[1]) == len(match[2])


def _to_example(row: Row, split: str) -> tuple[str, Mapping[str, FieldValue]]:
    return take(row, "text", str).strip(), NOTHING


def _published(name: str, folder: str) -> Published:
    return Published(
        name=name,
        hub="Salesforce/wikitext",
        config=f"{folder}-raw-v1",
        columns=("text",),
        folders=(f"{folder}-raw", folder),
        files={split: (f"wiki.{part}.raw", f"wiki.{part}.tokens") for split, part in _FILE_SPLITS.items()},
        read=formats.lines,
        to_example=_to_example,
        without_headings=without_headings,
    )


WIKITEXT2: Final = _published("wikitext2", "wikitext-2")
WIKITEXT103: Final = _published("wikitext103", "wikitext-103")
