"""The flags that every extraction has; each command's dataclass adds its own."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from decision_traces.errors import UsageError
from decision_traces.extract.selection import Selection, as_numbers, as_words
from decision_traces.format.arrays import StorageDtype
from decision_traces.format.stages import Capture
from decision_traces.model.load import ModelDtype, ModelSource
from decision_traces.paths import portable_fields


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What model, how much of the data, what to keep, and where."""

    model: str | None = None
    """Hub id, or "demo" for the embedded model; with --model_path only the run's name for it."""
    model_path: Path | None = None
    """Local folder with config, weights and tokenizer."""
    gguf_file: str | None = None
    """Name of a GGUF file in the model's folder or repository."""
    revision: str | None = None
    """Branch, tag or commit of the model on the hub."""
    trust_remote_code: bool = False
    """Run Python that the model brings along; only for models of people you trust."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    model_dtype: ModelDtype = "auto"
    """Type of weights and computation; auto is float32 on CPU and the checkpoint's own elsewhere."""
    split: str = "validation"
    """train, validation or test."""
    data_dir: Path | None = None
    """Folder with the published files, instead of the hub; default $DECISION_TRACES_DATA."""
    limit: int | None = None
    """Take the first so many examples; default all."""
    max_seq_len: int | Literal["auto"] = "auto"
    """T, in tokens; auto fits the longest text, up to the model's context."""
    capture: tuple[Capture, ...] = ("hidden", "resid")
    """Which arrays to keep."""
    layers: str = "all"
    """Which layers to keep: all, or numbers such as 0,5,-1 or 0-3 (hidden keeps the states before and behind them)."""
    heads: str = "all"
    """Which heads to keep, of the queries: all, or numbers; of keys and values those they read from."""
    positions: str = "all"
    """Which token positions to keep: all; next, where the prediction is made; last; or numbers such as 0,5."""
    batch_size: int = 64
    """Most examples of a batch; how many tokens it may have is chosen for the device."""
    dtype: StorageDtype = "float16"
    """Type of the arrays on disk."""
    block_mb: int = 2048
    """What a block takes on disk, MiB. A block is the unit of resuming, and texts of like length are sought in it."""
    store_unembed: bool = False
    """Also keep the model's head (final norm and unembedding), so that analysis needs no model."""
    out_dir: Path | None = None
    """The run's folder; default traces/<RUN_ID>."""
    plan: bool = False
    """Say what the run would take (bytes, files, memory, time), and stop before it."""
    overwrite: bool = False
    """Replace a run that is already there, once the new one is complete."""
    resume: bool = False
    """Go on with an unfinished run."""
    uncertified: bool = False
    """Keep the run even if its certificate fails; it then says so wherever it is opened."""
    seed: int = 0
    """Seed of everything random: a head that the checkpoint lacks; nothing else is, on CPU."""
    anonymous: bool = False
    """Leave the command, all paths and the name of the system out of what the run says of itself."""
    quiet: bool = False
    """No progress."""
    command: Annotated[tuple[str, ...], tyro.conf.Suppress] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Take what Python users give: paths as text, and words and numbers as lists.

        Raises:
            UsageError: A value is of a kind that its flag does not take.
        """
        found = portable_fields(self) | {"capture": as_words(self.capture, "capture")}
        found |= {name: as_numbers(getattr(self, name), name) for name in ("layers", "heads", "positions")}
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def model_source(self, default: str | None = None) -> ModelSource:
        """Return where the model comes from; `default` is the hub id when nothing was named."""
        model = default if self.model is None and self.model_path is None else self.model
        return ModelSource(
            model,
            self.model_path,
            self.gguf_file,
            self.revision,
            self.device,
            self.model_dtype,
            trust_remote_code=self.trust_remote_code,
        )

    def selection(self) -> Selection:
        """Return what is to be kept, resolved to values.

        Raises:
            UsageError: A word that is no capture, or numbers of another form.
        """
        return Selection.of(self.capture, self.layers, self.heads, self.positions)

    def check(self) -> None:
        """Refuse what can be refused before anything is loaded.

        Raises:
            UsageError: A flag that no model can follow.
        """
        for name in ("batch_size", "block_mb"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: needs at least 1.")
        if self.max_seq_len != "auto" and self.max_seq_len < 1:
            raise UsageError(f"--max_seq_len {self.max_seq_len}: needs at least 1, or auto.")
        if not 0 <= self.seed < 1 << 32:
            raise UsageError(f"--seed {self.seed}: needs a whole number from 0 to {(1 << 32) - 1}.")
        if self.resume and self.out_dir is None:
            raise UsageError("--resume needs --out_dir: the folder of the run to go on with.")

    def settings(self) -> dict[str, Any]:
        """Return the flags as JSON values, but for the command line itself."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in {"command", "plan"}}
        return {
            name: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
            for name, v in values.items()
        }
