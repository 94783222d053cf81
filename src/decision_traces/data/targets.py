"""What an encoder-decoder is to say to each text: from a file beside the texts, or from a column of the data."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from decision_traces.data.example import TARGET_FIELD, Example, FieldValue
from decision_traces.data.registry import DataSource, load_examples
from decision_traces.data.text_files import text_rows
from decision_traces.errors import DataError, UsageError


@dataclass(frozen=True, slots=True)
class Targets:
    """Where the targets are.

    Attributes:
        file: A file with as many rows as the data: .txt (one a line), or .jsonl, .csv, .parquet with a column `target`.
        column: A column of the data itself.
    """

    file: Path | None = None
    column: str | None = None

    def __post_init__(self) -> None:
        """Refuse both at once."""
        if self.file is not None and self.column is not None:
            raise UsageError("--targets_file and --target_column: give one of them.")

    @property
    def given(self) -> bool:
        """Whether there are targets at all."""
        return self.file is not None or self.column is not None


def load_with_targets(source: DataSource, targets: Targets) -> list[Example]:
    """Return the examples, each with its target as the field `target_text`; null where there are none.

    Raises:
        DataError: The data or the targets are not there or malformed, or an example has no target.
        UsageError: A column was asked for of a file without columns.
    """
    examples = load_examples(source)
    if not targets.given:
        return [_with(e, None) for e in examples]
    if targets.file is not None:
        rows = {row.number: row.text for row in text_rows(targets.file, "target", "--targets_file")}
        return [_with(e, _of_row(e, rows, targets.file)) for e in examples]
    if source.text_file is not None:
        if source.text_file.suffix.lower() == ".txt":
            raise UsageError(
                f"--target_column {targets.column}: {source.text_file} has no columns; give --targets_file, "
                "or a .jsonl, .csv or .parquet file."
            )
        flag = "--target_column: --text_file"
        rows = {row.number: row.text for row in text_rows(source.text_file, str(targets.column), flag)}
        return [_with(e, _of_row(e, rows, source.text_file)) for e in examples]
    return [_with(e, _of_field(e, str(targets.column))) for e in examples]


def _with(example: Example, target: str | None) -> Example:
    fields: dict[str, FieldValue] = {**example.fields, TARGET_FIELD: target}
    return replace(example, fields=fields)


def _of_row(example: Example, rows: Mapping[int, str], path: Path) -> str:
    row = int(example.example_id.split("-")[-2])
    if row not in rows:
        raise DataError(f"{path} has no target for row {row} ({example.example_id}); it has {len(rows)}.")
    return rows[row]


def _of_field(example: Example, column: str) -> str:
    if column not in example.fields:
        columns = ", ".join(example.fields) or "none"
        raise DataError(f"--target_column {column}: the data has no such column; it has: {columns}.")
    value = example.fields[column]
    return ", ".join(value) if isinstance(value, list) else "" if value is None else str(value)
