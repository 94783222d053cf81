"""`Published`: a data set that others published, from the hub or from a folder with its files.

Rows of local files are brought into the hub's columns first, so that one function makes examples of both and an
example is the same wherever it came from.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from decision_traces.data.example import Example, FieldValue, make_example_id
from decision_traces.data.formats import Malformed, Row
from decision_traces.data.local import missing_local
from decision_traces.data.remote import hub_rows
from decision_traces.errors import DataError

NOTHING: Mapping[str, Any] = MappingProxyType({})


def _as_it_is(row: Row) -> Row:
    return row


@dataclass(frozen=True, slots=True)
class Published:
    """Where a data set is, and how its rows become examples.

    Attributes:
        name: Name on the command line, and in ids.
        hub: Repository on the Hugging Face hub.
        config: The hub's configuration.
        columns: The hub's columns that are needed.
        folders: Names of its folder under `--data_dir`, best first; `--data_dir` itself is tried last.
        files: For each split, the names its file may have, best first.
        read: Yields (line number from 1, row) for a file.
        to_example: Gives text and fields for a row with the hub's columns and a split. Every row has the same
            fields; a row with an empty text is no example.
        to_hub_row: Gives the hub's columns for a row of a file.
        hub_splits: What the hub calls a split, where that is not its own name; tried in order.
        without_headings: Leaves out the headings among rows (None is a row that is no example); None where
            there is no such thing.
    """

    name: str
    hub: str
    config: str
    columns: tuple[str, ...]
    folders: tuple[str, ...]
    files: Mapping[str, tuple[str, ...]]
    read: Callable[[Path], Iterator[tuple[int, Row]]]
    to_example: Callable[[Row, str], tuple[str, Mapping[str, FieldValue]]]
    to_hub_row: Callable[[Row], Row] = _as_it_is
    hub_splits: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: NOTHING)
    without_headings: Callable[[Iterable[Example | None]], Iterator[Example]] | None = None

    def rows(self, split: str, data_dir: Path | None) -> Iterator[Example | None]:
        """Yield one item for every row of the published data: its example, or None where the text is empty.

        Args:
            split: train, validation or test.
            data_dir: Folder with the published files; None means the hub.

        Raises:
            DataError: The data is not there, or a row is malformed.
        """
        return self._hub_rows(split) if data_dir is None else self._local_rows(split, data_dir)

    def _hub_rows(self, split: str) -> Iterator[Example | None]:
        names = self.hub_splits.get(split, (split,))
        rows = hub_rows(self.name, self.hub, self.config, names, self.columns)
        yield from self._examples(split, f"{self.hub} ({split}), row", enumerate(rows), _as_it_is)

    def _local_rows(self, split: str, data_dir: Path) -> Iterator[Example | None]:
        path = self._file(split, data_dir)
        try:
            yield from self._examples(split, f"{path}, line", self.read(path), self.to_hub_row)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}).") from error

    def _file(self, split: str, data_dir: Path) -> Path:
        folders = [*(data_dir / folder for folder in self.folders), data_dir]
        candidates = (folder / name for name in self.files[split] for folder in folders)
        path = next((c for c in candidates if c.is_file()), None)
        if path is None:
            raise missing_local(self.name, split, data_dir, self.files[split], self.folders)
        return path

    def _examples(
        self, split: str, location: str, records: Iterable[tuple[int, Row]], to_hub_row: Callable[[Row], Row]
    ) -> Iterator[Example | None]:
        for row, (number, record) in enumerate(records):
            try:
                text, fields = self.to_example(to_hub_row(record), split)
            except Malformed as fault:
                raise DataError(f"{location} {number}: {fault}.") from fault
            yield Example(make_example_id(self.name, split, row, text), text, fields) if text else None
