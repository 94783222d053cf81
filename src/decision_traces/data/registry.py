"""The data sets by name. A new one is a row here and a module that yields examples."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Literal

from decision_traces.data import tinyworld, wikitext
from decision_traces.data.example import Example
from decision_traces.data.local import text_file_examples
from decision_traces.errors import DataError, UsageError, first_line
from decision_traces.hub import hub_reachable

DatasetName = Literal["tinyworld", "wikitext2", "wikitext103"]
SPLITS: Final = ("train", "validation", "test")
DATA_DIR_VARIABLE: Final = "DECISION_TRACES_DATA"


@dataclass(frozen=True, slots=True)
class DataSource:
    """What the user asked for.

    Attributes:
        dataset: Name of a data set; ignored when `text_file` is given.
        split: train, validation or test.
        data_dir: Folder with the published files; None means $DECISION_TRACES_DATA, or else the hub.
        text_file: The user's own texts.
        limit: Take the first so many examples; None means all.
    """

    dataset: DatasetName
    split: str = "validation"
    data_dir: Path | None = None
    text_file: Path | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before anything is loaded.

        Raises:
            UsageError: A limit below 1, or an unknown split.
        """
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: needs at least 1 (leave it out for all examples).")
        if self.text_file is None and self.split not in SPLITS:
            raise UsageError(f"--split {self.split}: {self.dataset} has the splits {', '.join(SPLITS)}.")

    @property
    def name(self) -> str:
        """Name of the data for ids and meta."""
        return self.text_file.stem if self.text_file is not None else self.dataset

    @property
    def split_name(self) -> str:
        """Name of the split; a text file has only one."""
        return "all" if self.text_file is not None else self.split


def load_examples(source: DataSource) -> list[Example]:
    """Return the examples in the order of the published data.

    Raises:
        DataError: The data is not there, or holds no examples.
    """
    found = list(islice(_stream(source), source.limit))
    if not found:
        raise DataError(f"{source.name} ({source.split_name}) holds no examples.")
    return found


def _stream(source: DataSource) -> Iterator[Example]:
    if source.text_file is not None:
        return text_file_examples(source.text_file)
    if source.dataset == "tinyworld":
        return tinyworld.examples(source.split, source.limit)
    return wikitext.examples(source.dataset, source.split, _rows(source))


def _rows(source: DataSource) -> Iterable[str]:
    data_dir = source.data_dir or _data_dir_from_environment()
    if data_dir is not None:
        return wikitext.local_rows(source.dataset, source.split, data_dir)
    return _hub_rows(wikitext.HUB, wikitext.hub_config(source.dataset), source)


def _data_dir_from_environment() -> Path | None:
    value = os.environ.get(DATA_DIR_VARIABLE)
    return Path(value) if value else None


def _hub_rows(repository: str, config: str, source: DataSource) -> Iterator[str]:
    import datasets

    offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = offline or not hub_reachable()
    try:
        rows = datasets.load_dataset(repository, config, split=source.split)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise DataError(
            f"--dataset {source.dataset}: {repository} is not to be had from the Hugging Face hub or its cache "
            f"({reason}). Give the published files with --data_dir, or set ${DATA_DIR_VARIABLE}."
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    return (row["text"] for row in rows)
