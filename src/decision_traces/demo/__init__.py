"""The embedded model: a tiny GPT-2 trained on `tinyworld`; in a clone, `dev/demo_model` trains and judges it."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
