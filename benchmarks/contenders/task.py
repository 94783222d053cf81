"""What every contender is asked to do: the same examples, the same tokens, the same arrays in float16."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from decision_traces.data.registry import DatasetName, DataSource, load_examples
from decision_traces.format.stages import Capture

ARRAYS: Final[Mapping[Capture, tuple[str, ...]]] = {
    "hidden": ("hidden",),
    "resid": ("embed", "pre_attn", "post_attn", "post_mlp"),
    "qkv": ("q", "k", "v"),
    "attn": ("attn",),
}
"""What each `--capture` word asks for, by the names that contenders use for their arrays."""

SETS: Final[Mapping[str, tuple[Capture, ...]]] = {
    "resid": ("hidden", "resid"),
    "qkv": ("hidden", "resid", "qkv"),
    "everything": ("attn", "qkv", "hidden", "resid"),
}
"""The sets of captures that are measured, by the names of the command line."""

STAGES: Final = ("pre_attn", "post_attn", "post_mlp")


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work, the same for every contender; plain values, so that another process can be given it.

    Attributes:
        model_path: Folder with config, weights and tokenizer of a decoder.
        dataset, split, data_dir, limit: Which examples.
        max_seq_len: T: longer texts are cut.
        capture: Which arrays to write, as `--capture` words.
        batch_size: Most rows of a batch of ours; the others' batches are part of what they are.
    """

    model_path: Path
    dataset: DatasetName
    split: str
    data_dir: Path | None
    limit: int
    max_seq_len: int
    capture: tuple[Capture, ...]
    batch_size: int = 64

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that are asked for."""
        return tuple(name for word in self.capture for name in ARRAYS[word])

    @property
    def attention(self) -> str:
        """The attention implementation that plain transformers needs for these arrays."""
        return "eager" if "attn" in self.capture else "sdpa"

    def wants(self, *names: str) -> bool:
        """Return whether one of these arrays is asked for."""
        return any(name in self.arrays for name in names)

    def tokens(self) -> list[list[int]]:
        """Return the token ids of every example, cut after T."""
        source = DataSource(self.dataset, self.split, self.data_dir, limit=self.limit)
        tokenizer = AutoTokenizer.from_pretrained(self.model_path, trust_remote_code=False)
        texts = [example.text for example in load_examples(source)]
        return [ids[: self.max_seq_len] for ids in tokenizer(texts, verbose=False)["input_ids"]]

    def to_json(self) -> dict[str, Any]:
        """Return the task as JSON can hold it."""
        paths = {"model_path": str(self.model_path), "data_dir": self.data_dir and str(self.data_dir)}
        return {**asdict(self), "capture": list(self.capture), **paths}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Task":
        """Return the task that `to_json` described."""
        folder = told["data_dir"]
        paths = {"model_path": Path(told["model_path"]), "data_dir": None if folder is None else Path(folder)}
        return cls(**{**told, "capture": tuple(told["capture"]), **paths})
