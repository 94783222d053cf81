"""Rows from the Hugging Face hub or its cache, through `datasets`."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from decision_traces.data.formats import Row
from decision_traces.errors import DataError, first_line
from decision_traces.hub import hub_reachable

DATA_DIR_VARIABLE: Final = "DECISION_TRACES_DATA"


def hub_rows(
    dataset: str, repository: str, config: str, splits: tuple[str, ...], columns: tuple[str, ...]
) -> Iterable[Row]:
    """Return the rows of a split, with the columns that are asked for.

    Args:
        dataset: Name on the command line, for messages.
        repository: Name on the hub.
        config: The repository's configuration.
        splits: Names that the split may have there, tried in order.
        columns: Columns that are needed.

    Raises:
        DataError: Neither hub nor cache has it, or columns are missing.
    """
    import datasets

    offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = offline or not hub_reachable()
    try:
        rows = _first_split(repository, config, splits)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"--dataset {dataset}: {repository} is not to be had from the Hugging Face hub or its cache "
            f"({first_line(error)}). Give the published files with --data_dir, or set ${DATA_DIR_VARIABLE}."
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise DataError(
            f"--dataset {dataset}: {repository} has no column {', '.join(missing)}; it has: "
            f"{', '.join(rows.column_names)}. Give the published files with --data_dir."
        )
    selected: Iterable[Row] = rows.select_columns(list(columns))
    return selected


def _first_split(repository: str, config: str, splits: tuple[str, ...]) -> Any:
    import datasets

    for split in splits[:-1]:
        with suppress(ValueError):  # what `datasets` raises for a split that is not there
            return datasets.load_dataset(repository, config, split=split)
    return datasets.load_dataset(repository, config, split=splits[-1])
