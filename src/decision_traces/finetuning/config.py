"""How to fine-tune: the flags of `decision-traces finetune`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch

from decision_traces.errors import UsageError
from decision_traces.model.load import ModelSource
from decision_traces.paths import portable_fields

DEFAULT_MODEL: Final = "roberta-base"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tune an encoder with a multiple-choice head, keep the best checkpoint, and say how good it is."""

    model: str | None = None
    """Hub id; with --model_path only the run's name for it. Default roberta-base, or the folder's name."""
    model_path: Path | None = None
    """Local folder with config, weights and tokenizer."""
    revision: str | None = None
    """Branch, tag or commit of the model on the hub."""
    trust_remote_code: bool = False
    """Run Python that the model brings along; only for models of people you trust."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    dataset: Literal["csqa", "tinyworld"] = "csqa"
    """Which questions: trained on its train split, judged on its validation split."""
    data_dir: Path | None = None
    """Folder with the published files, instead of the hub; default $DECISION_TRACES_DATA."""
    train_limit: int | None = None
    """Train on the first so many questions; default all."""
    eval_limit: int | None = None
    """Judge on the first so many questions; default all."""
    max_seq_len: int = 128
    """Most tokens of a question with one of its choices."""
    batch_size: int = 8
    """Questions a step and device."""
    grad_accum: int = 1
    """Steps whose gradients are added up before the weights change."""
    lr: float = 2e-5
    """Highest learning rate."""
    epochs: float = 2.0
    """Passes over the training questions."""
    warmup_ratio: float = 0.06
    """Share of the steps with a rising learning rate; it falls in a line afterwards."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    bf16: bool = False
    """Mixed precision in bfloat16."""
    fp16: bool = False
    """Mixed precision in float16 (GPU only)."""
    early_stopping: int | None = None
    """Stop after so many epochs without a better accuracy; default never."""
    seed: int = 0
    """Seed of the new head, of dropout and of the order of the questions."""
    out_dir: Path | None = None
    """Folder of the checkpoint; default checkpoints/<RUN_ID>."""
    resume: bool = False
    """Go on from the last finished epoch in --out_dir."""
    overwrite: bool = False
    """Replace the checkpoint in --out_dir once the new one is complete."""
    anonymous: bool = False
    """Leave all paths out of what the checkpoint says of itself."""
    quiet: bool = False
    """No progress."""

    def __post_init__(self) -> None:
        """Take paths that are given as text."""
        for name, value in portable_fields(self).items():
            object.__setattr__(self, name, value)

    def model_source(self) -> ModelSource:
        """Return where the base model comes from."""
        model = DEFAULT_MODEL if self.model is None and self.model_path is None else self.model
        trust = self.trust_remote_code
        return ModelSource(model, self.model_path, None, self.revision, self.device, "float32", trust_remote_code=trust)


def check_flags(config: FinetuneConfig) -> None:
    """Refuse what can be refused before anything is loaded.

    Raises:
        UsageError: Names the flag and what it needs.
    """
    for name in ("batch_size", "grad_accum", "max_seq_len", "train_limit", "eval_limit", "early_stopping"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}: needs at least 1.")
    if not 0 <= config.seed < 1 << 32:
        raise UsageError(f"--seed {config.seed}: needs a whole number from 0 to {(1 << 32) - 1}.")
    if config.lr <= 0 or config.epochs <= 0:
        raise UsageError(f"--lr {config.lr} --epochs {config.epochs}: both need to be above 0.")
    if not 0 <= config.warmup_ratio < 1:
        raise UsageError(f"--warmup_ratio {config.warmup_ratio}: needs to be at least 0 and below 1.")
    if config.bf16 and config.fp16:
        raise UsageError("--bf16 --fp16: one of them, not both.")
    if config.fp16 and not torch.cuda.is_available():
        raise UsageError("--fp16 needs a GPU, and there is none here. Leave it out, or use --bf16.")
    if config.resume and config.out_dir is None:
        raise UsageError("--resume needs --out_dir: the folder of the training to go on with.")


def settings_of(config: FinetuneConfig) -> dict[str, Any]:
    """Return the flags as JSON values."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in asdict(config).items()}


def told_settings(config: FinetuneConfig) -> dict[str, Any]:
    """Return the flags that the checkpoint tells of; without paths where it is to be anonymous."""
    paths = {name for name, value in asdict(config).items() if config.anonymous and isinstance(value, Path)}
    return {name: value for name, value in settings_of(config).items() if name not in paths}
