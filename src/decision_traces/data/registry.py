"""The data sets by name. A new one is a row here and a module with its location and its rows."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Literal, Protocol, runtime_checkable

from decision_traces.data import tinyworld
from decision_traces.data.csqa import CSQA
from decision_traces.data.example import Example
from decision_traces.data.go_emotions import GO_EMOTIONS
from decision_traces.data.own_texts import NAME as OWN_NAME
from decision_traces.data.remote import DATA_DIR_VARIABLE
from decision_traces.data.text_files import text_file_examples
from decision_traces.data.ud_ewt import UD_EWT
from decision_traces.data.wikitext import WIKITEXT2, WIKITEXT103
from decision_traces.errors import DataError, UsageError
from decision_traces.paths import portable_path

DatasetName = Literal["tinyworld", "wikitext2", "wikitext103", "ud_ewt", "go_emotions", "csqa"]
SPLITS: Final = ("train", "validation", "test")


@runtime_checkable
class Dataset(Protocol):
    """What a row of the table can do; `Published` documents it."""

    @property
    def without_headings(self) -> Callable[[Iterable[Example | None]], Iterator[Example]] | None: ...  # noqa: D102

    def rows(self, split: str, data_dir: Path | None) -> Iterator[Example | None]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Generated:
    """A data set that comes with the package, so that neither folder nor hub is asked."""

    make: Callable[[str], Iterator[Example]]
    without_headings: None = None

    def rows(self, split: str, data_dir: Path | None) -> Iterator[Example | None]:
        """Yield the examples of a split."""
        return self.make(split)


DATASETS: Final[Mapping[DatasetName, Dataset]] = {
    "tinyworld": Generated(tinyworld.examples),
    "wikitext2": WIKITEXT2,
    "wikitext103": WIKITEXT103,
    "ud_ewt": UD_EWT,
    "go_emotions": GO_EMOTIONS,
    "csqa": CSQA,
}


@dataclass(frozen=True, slots=True)
class DataSource:
    """What the user asked for.

    Attributes:
        dataset: Name of a data set; ignored when `text_file` is given.
        split: train, validation or test.
        data_dir: Folder with the published files; None means $DECISION_TRACES_DATA, or else the hub.
        text_file: The user's own texts.
        limit: Take the first so many examples; None means all.
        skip_headings: Leave out the headings of WikiText. The other examples keep their ids.
        own: The user's own texts, from memory, instead of all these.
    """

    dataset: DatasetName
    split: str = "validation"
    data_dir: Path | None = None
    text_file: Path | None = None
    limit: int | None = None
    skip_headings: bool = False
    own: tuple[Example, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before anything is loaded.

        Raises:
            UsageError: A limit below 1, an unknown data set or split, or no headings to skip.
        """
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: needs at least 1 (leave it out for all examples).")
        if self.text_file is None and self.dataset not in DATASETS:
            raise UsageError(f"--dataset {self.dataset}: there is no such data set; there are {', '.join(DATASETS)}.")
        if self.text_file is None and self.split not in SPLITS:
            raise UsageError(f"--split {self.split}: {self.dataset} has the splits {', '.join(SPLITS)}.")
        if self.skip_headings and (self.text_file is not None or DATASETS[self.dataset].without_headings is None):
            have = ", ".join(name for name, dataset in DATASETS.items() if dataset.without_headings is not None)
            raise UsageError(f"--skip_headings: {self.text_file or self.dataset} has no headings; {have} have.")

    @property
    def name(self) -> str:
        """Name of the data for ids and meta."""
        if self.own is not None:
            return OWN_NAME
        return self.text_file.stem if self.text_file is not None else self.dataset

    @property
    def split_name(self) -> str:
        """Name of the split; texts of the user's own have only one."""
        return "all" if self.text_file is not None or self.own is not None else self.split


def load_examples(source: DataSource) -> list[Example]:
    """Return the examples in the order of the published data.

    Raises:
        DataError: The data is not there, is malformed, or holds no examples.
    """
    examples = list(islice(_stream(source), source.limit))
    if not examples:
        raise DataError(f"{source.name} ({source.split_name}) holds no examples.")
    return examples


def _stream(source: DataSource) -> Iterator[Example]:
    if source.own is not None:
        return iter(source.own)
    if source.text_file is not None:
        return text_file_examples(source.text_file)
    dataset = DATASETS[source.dataset]
    rows = dataset.rows(source.split, source.data_dir or _data_dir_from_environment())
    if source.skip_headings and dataset.without_headings is not None:
        return dataset.without_headings(rows)
    return (example for example in rows if example is not None)


def _data_dir_from_environment() -> Path | None:
    value = os.environ.get(DATA_DIR_VARIABLE)
    return portable_path(value) if value else None
