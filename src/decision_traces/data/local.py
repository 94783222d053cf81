"""The error for a published file that is not there, and the fingerprint of a set of examples."""

import hashlib
import json
from pathlib import Path

from decision_traces.data.example import Example
from decision_traces.errors import DataError


def missing_local(
    dataset: str, split: str, data_dir: Path, names: tuple[str, ...], folders: tuple[str, ...]
) -> DataError:
    """Return the error for a split that a local folder does not have, naming the files and folders that are there."""
    if not data_dir.is_dir():
        return DataError(f"--data_dir {data_dir}: there is no such folder.")
    searched = [data_dir, *(path for folder in folders if (path := data_dir / folder).is_dir())]
    files = sorted(p.relative_to(data_dir).as_posix() for folder in searched for p in folder.iterdir() if p.is_file())
    other = sorted(f"{p.name}/" for p in data_dir.iterdir() if p.is_dir() and p.name not in folders)
    return DataError(
        f"--data_dir {data_dir} has no {split} split of {dataset}: looked for {' or '.join(names)} there and under "
        f"{' or '.join(f'{folder}/' for folder in folders)}. It holds: "
        f"{', '.join([*files, *other][:12]) or 'no files'}."
    )


def fingerprint(examples: list[Example]) -> str:
    """Return the SHA-256 over ids, texts and fields in order: two runs with the same value saw the same data."""
    digest = hashlib.sha256()
    for example in examples:
        for part in (example.text, json.dumps(dict(example.fields), sort_keys=True)):
            encoded = part.encode("utf-8", errors="surrogatepass")
            digest.update(f"{example.example_id} {len(encoded)}\n".encode())
            digest.update(encoded)
    return digest.hexdigest()
