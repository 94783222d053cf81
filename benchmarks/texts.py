"""Which texts a benchmark reads: the flags that several of them have."""

from dataclasses import dataclass
from pathlib import Path

from decision_traces.data.registry import DatasetName


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Examples of a data set, cut after T tokens."""

    data_dir: Path | None = None
    """Folder with the published data."""
    dataset: DatasetName = "wikitext2"
    """Which data set."""
    split: str = "validation"
    """train, validation or test."""
    max_seq_len: int = 256
    """T: longer texts are cut."""
