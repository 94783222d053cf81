"""WikiText-2 and WikiText-103: paragraphs of Wikipedia articles (Merity et al. 2016).

Row numbers are line numbers of the published files, which are the row numbers on the hub. Empty lines yield no
example; headings do, as on the hub. The raw form is taken where it is there, else the tokens form (with <unk>).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from decision_traces.data.example import Example, make_example_id
from decision_traces.data.local import missing_local

HUB: Final = "Salesforce/wikitext"
_FILE_SPLIT: Final = {"train": "train", "validation": "valid", "test": "test"}
_FOLDERS: Final = {"wikitext2": "wikitext-2", "wikitext103": "wikitext-103"}


def hub_config(dataset: str) -> str:
    """Return the hub configuration: the raw form."""
    return f"{_FOLDERS[dataset]}-raw-v1"


def candidates(dataset: str, split: str, data_dir: Path) -> list[Path]:
    """Return the files that may hold a split, best first."""
    folder, name = _FOLDERS[dataset], _FILE_SPLIT[split]
    places = [data_dir / f"{folder}-raw", data_dir / folder, data_dir]
    return [place / f"wiki.{name}.{form}" for form in ("raw", "tokens") for place in places]


def local_rows(dataset: str, split: str, data_dir: Path) -> Iterator[str]:
    """Yield the lines of the published file."""
    files = candidates(dataset, split, data_dir)
    path = next((f for f in files if f.is_file()), None)
    if path is None:
        raise missing_local(dataset, split, data_dir, [*dict.fromkeys(f.name for f in files)], _FOLDERS[dataset])
    with path.open(encoding="utf-8", newline="\n") as stream:
        yield from stream


def examples(dataset: str, split: str, rows: Iterable[str]) -> Iterator[Example]:
    """Yield an example for every row that is not empty."""
    for row, line in enumerate(rows):
        text = line.strip()
        if text:
            yield Example(make_example_id(dataset, split, row, text), text)
