"""A stand-in for the hub: `datasets` itself, over local Parquet files in the hub's schema."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

Rows = list[dict[str, Any]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, Mapping[str, Rows]], None]:
    """Return a function that puts a repository on the hub: its name, a configuration, the rows of each split."""
    import datasets

    root, load = tmp_path / "hub", datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, config, split: load(str(root / name), config, split=split)
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv("DECISION_TRACES_DATA", raising=False)

    def put(name: str, config: str, splits: Mapping[str, Rows]) -> None:
        (root / name / config).mkdir(parents=True)
        files = ""
        for split, rows in splits.items():
            pd.DataFrame(rows).to_parquet(root / name / config / f"{split}-00000-of-00001.parquet")
            files += f"  - split: {split}\n    path: {config}/{split}-*\n"
        header = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n"
        (root / name / "README.md").write_text(header)

    return put
