"""The embedded model: a tiny GPT-2 trained on `tinyworld`, with the scripts that train and judge it."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
