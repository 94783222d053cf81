"""The ledger of an unfinished run: one JSON line for its plan and one for every finished block, fsynced each."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from decision_traces.errors import RunError

LEDGER_FILE: Final = "ledger.jsonl"


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line and see it safely on the disk."""
    with path.open("a", encoding="utf-8") as ledger:
        ledger.write(json.dumps(record, ensure_ascii=False) + "\n")
        ledger.flush()
        os.fsync(ledger.fileno())


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Return the ledger's records; a last line that was cut off by a crash does not count."""
    records = []
    for line in path.read_bytes().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # not JSON, or half a character
            break
    if not records or "plan" not in records[0]:
        raise RunError(f"{path} is damaged: it does not begin with a plan. Discard the folder by --overwrite.")
    return records


def rewrite_ledger(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Leave a torn last line out, so that what is appended begins on a line of its own."""
    whole = path.with_name(f".{path.name}.partial")
    whole.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    whole.replace(path)
