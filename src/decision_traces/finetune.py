"""Fine-tuning an encoder on multiple-choice questions, with transformers' own trainer."""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, Protocol, runtime_checkable

import datasets
import numpy as np
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from decision_traces.data.example import Example
from decision_traces.data.local import fingerprint
from decision_traces.data.prompts import read_questions
from decision_traces.data.registry import DataSource
from decision_traces.errors import DataError, Interrupted, RunExistsError, UsageError
from decision_traces.models.load import LoadedModel, ModelSource, load_model, quiet_transformers
from decision_traces.schema import FINETUNE_FILE
from decision_traces.store.place import default_root, run_id
from decision_traces.tokens import Encoding, encode_choices, pad_id

PLAN_FILE: Final = "finetune_plan.json"
_FREE_TO_CHANGE: Final = frozenset({"out_dir", "resume", "overwrite", "quiet", "device", "epochs", "early_stopping"})
_LOGS_AN_EPOCH: Final = 10


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tune an encoder with a multiple-choice head, keep the best checkpoint, and say how good it is."""

    model: str = "roberta-base"
    """Hub id; with --model_path only the run's name for it."""
    model_path: Path | None = None
    """Local folder with config, weights and tokenizer."""
    revision: str | None = None
    """Branch, tag or commit of the model on the hub."""
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
    """Replace what is in --out_dir."""
    quiet: bool = False
    """No progress."""


@runtime_checkable
class Teller(Protocol):
    """Who is told how far the training is."""

    def __call__(self, line: str, /) -> None:
        """Tell one line."""


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What came out.

    Attributes:
        folder: The checkpoint: weights, config, tokenizer and `finetune_meta.json`.
        accuracy: Share of the validation questions that the kept checkpoint answers rightly.
        n_eval: How many these are.
        chance: Accuracy of guessing.
    """

    folder: Path
    accuracy: float
    n_eval: int
    chance: float


def finetune(config: FinetuneConfig, tell: Teller | None = None) -> FinetuneResult:
    """Fine-tune, and return where the best checkpoint lies and how good it is.

    Args:
        config: The same options as on the command line.
        tell: Who is told how far it is; nobody by default.

    Raises:
        TraceError: One of its children; see `errors`.
    """
    _check(config)
    tell = tell or _nobody
    set_seed(config.seed)
    train = _questions(config, "train", config.train_limit)
    judged = _questions(config, "validation", config.eval_limit)
    source = ModelSource(config.model, config.model_path, None, config.revision, config.device, "float32")
    tell(f"Loading {source.location}")
    loaded = load_model(source, "multiple_choice")
    folder = _open_folder(config, source, len(train))
    _keep_plan(config, folder)
    trainer = _trainer(config, loaded, train, judged, folder, tell)
    tell(f"Training on {len(train)} questions, judging on {len(judged)}; checkpoint in {folder}")
    try:
        with quiet_transformers():
            outcome = trainer.train(resume_from_checkpoint=_last_checkpoint(config, folder))
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped. Finished epochs are kept in {folder}; the same command with --out_dir {folder} --resume goes on."
        ) from None
    story = _story(trainer)
    trainer.remove_callback(_Told)
    with quiet_transformers():
        metrics = trainer.evaluate()
        _save(trainer, loaded, folder)
    result = FinetuneResult(folder, float(metrics["eval_accuracy"]), len(judged), 1 / _n_choices(judged))
    _write_meta(config, source, loaded, result, story, (train, judged), outcome.metrics)
    return result


def _nobody(line: str, /) -> None:
    """Tell nobody."""


def _check(config: FinetuneConfig) -> None:
    for name in ("batch_size", "grad_accum", "max_seq_len", "train_limit", "eval_limit", "early_stopping"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}: needs at least 1.")
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


def _questions(config: FinetuneConfig, split: str, limit: int | None) -> list[Example]:
    examples = read_questions(DataSource(config.dataset, split, config.data_dir, None, limit))
    unanswered = sum(answer_of(e) < 0 for e in examples)
    if unanswered:
        raise DataError(f"{config.dataset} ({split}): {unanswered} of {len(examples)} questions have no answer.")
    return examples


def answer_of(example: Example) -> int:
    """Return which choice is right."""
    return int(str(example.fields["label_idx"]))


def _n_choices(examples: Sequence[Example]) -> int:
    choices = examples[0].fields["choice_texts"]
    return len(choices) if isinstance(choices, list) else 0


# -- the folder ---------------------------------------------------------------------------------------------


def _open_folder(config: FinetuneConfig, source: ModelSource, n: int) -> Path:
    if config.out_dir is not None:
        folder = config.out_dir.absolute()
    else:
        name = run_id(datetime.now().astimezone(), source.name.split("/")[-1], config.dataset, "train", n, "mcq")
        folder = default_root().with_name("checkpoints") / name
    there = folder.is_dir() and any(folder.iterdir())
    if there and config.overwrite:
        shutil.rmtree(folder)
    elif there and not config.resume:
        raise RunExistsError(f"{folder} is there already. Go on with it by --resume, or replace it by --overwrite.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _keep_plan(config: FinetuneConfig, folder: Path) -> None:
    """Write what decides the numbers; a resumed training must agree with it."""
    plan = {name: value for name, value in settings_of(config).items() if name not in _FREE_TO_CHANGE}
    path = folder / PLAN_FILE
    if config.resume and path.is_file():
        begun = json.loads(path.read_text(encoding="utf-8"))
        differing = [f"{k} was {begun.get(k)!r}, is {plan[k]!r}" for k in plan if begun.get(k) != plan[k]]
        if differing:
            raise UsageError(f"--resume: {folder} was begun with other settings: {'; '.join(differing)}.")
    path.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")


def settings_of(config: FinetuneConfig) -> dict[str, Any]:
    """Return the flags as JSON values."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in asdict(config).items()}


def _last_checkpoint(config: FinetuneConfig, folder: Path) -> str | None:
    last = get_last_checkpoint(str(folder)) if config.resume else None
    if config.resume and last is None:
        raise UsageError(f"--resume: {folder} has no finished epoch. Leave --resume out, or give --overwrite.")
    return last


# -- training -----------------------------------------------------------------------------------------------


def as_dataset(tokenizer: Any, examples: Sequence[Example], limit: int) -> datasets.Dataset:
    """Return the questions as the trainer's data set: token ids of every choice, label, longest choice."""
    encodings, choices = encode_choices(tokenizer, examples, limit), _n_choices(examples)
    groups = [encodings[i : i + choices] for i in range(0, len(encodings), choices)]
    return datasets.Dataset.from_dict(
        {
            "input_ids": [[e.ids.tolist() for e in group] for group in groups],
            "token_type_ids": [[_types(e) for e in group] for group in groups],
            "labels": [answer_of(e) for e in examples],
            "length": [max(e.n_tokens for e in group) for group in groups],
        }
    )


def _types(encoding: Encoding) -> list[int]:
    return [] if encoding.type_ids is None else encoding.type_ids.tolist()


@dataclass(frozen=True, slots=True)
class Collator:
    """Pads the choices of some questions on the right to the longest of them.

    Attributes:
        pad: Id that fills padding.
    """

    pad: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return input_ids, attention_mask (and token_type_ids): (questions, choices, longest); labels."""
        choices = len(rows[0]["input_ids"])
        shape = (len(rows), choices, max(len(ids) for row in rows for ids in row["input_ids"]))
        batch = {"input_ids": torch.full(shape, self.pad), "attention_mask": torch.zeros(shape, dtype=torch.long)}
        if rows[0]["token_type_ids"][0]:
            batch["token_type_ids"] = torch.zeros(shape, dtype=torch.long)
        for i, row in enumerate(rows):
            for c, ids in enumerate(row["input_ids"]):
                batch["input_ids"][i, c, : len(ids)] = torch.tensor(ids)
                batch["attention_mask"][i, c, : len(ids)] = 1
                if "token_type_ids" in batch:
                    batch["token_type_ids"][i, c, : len(ids)] = torch.tensor(row["token_type_ids"][c])
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


class _Told(TrainerCallback):  # type: ignore[misc]
    """Hands the trainer's figures on as lines."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Tell the loss, or the accuracy after an epoch."""
        logs = logs or {}
        if "eval_accuracy" in logs:
            self._tell(f"epoch {state.epoch:.2f}: accuracy {logs['eval_accuracy']:.1%}, loss {logs['eval_loss']:.3f}")
        elif "loss" in logs:
            self._tell(
                f"step {state.global_step} of {state.max_steps}: loss {float(logs['loss']):.3f}, "
                f"learning rate {float(logs['learning_rate']):.2g}"
            )


def _trainer(
    config: FinetuneConfig,
    loaded: LoadedModel,
    train: Sequence[Example],
    judged: Sequence[Example],
    folder: Path,
    tell: Teller,
) -> Trainer:
    limit = min(config.max_seq_len, loaded.context or config.max_seq_len)
    callbacks: list[TrainerCallback] = [_Told(tell)]
    if config.early_stopping:
        callbacks.append(EarlyStoppingCallback(config.early_stopping))
    trainer = Trainer(
        model=loaded.model.train(),
        args=_arguments(config, loaded, folder, len(train)),
        data_collator=Collator(pad_id(loaded.tokenizer, loaded.embedded)),
        train_dataset=as_dataset(loaded.tokenizer, train, limit),
        eval_dataset=as_dataset(loaded.tokenizer, judged, limit),
        processing_class=loaded.tokenizer,
        compute_metrics=accuracy,
        callbacks=callbacks,
    )
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "PrinterCallback":  # it would print raw dictionaries besides
            trainer.remove_callback(callback)
    return trainer


def _arguments(config: FinetuneConfig, loaded: LoadedModel, folder: Path, n: int) -> TrainingArguments:
    steps = max(1, n // (config.batch_size * config.grad_accum))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice for other set-ups than this
        return TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=2 * config.batch_size,
            gradient_accumulation_steps=config.grad_accum,
            gradient_checkpointing=config.gradient_checkpointing,
            learning_rate=config.lr,
            num_train_epochs=config.epochs,
            warmup_steps=config.warmup_ratio,
            weight_decay=config.weight_decay,
            bf16=config.bf16,
            fp16=config.fp16,
            use_cpu=loaded.device.type == "cpu",
            seed=config.seed,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            greater_is_better=True,
            train_sampling_strategy="group_by_length",
            length_column_name="length",
            remove_unused_columns=False,
            logging_steps=max(1, steps // _LOGS_AN_EPOCH),
            disable_tqdm=True,
            report_to="none",
            dataloader_pin_memory=loaded.device.type == "cuda",
        )


def accuracy(prediction: Any) -> dict[str, float]:
    """Return the share of questions whose highest score is the right choice's."""
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}


# -- the end ------------------------------------------------------------------------------------------------


def _save(trainer: Trainer, loaded: LoadedModel, folder: Path) -> None:
    """Write the best weights and the tokenizer to the folder itself, where every other command finds them."""
    loaded.model.eval()
    trainer.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


def _story(trainer: Trainer) -> list[dict[str, float]]:
    """Return the figures after each epoch."""
    keys = {"epoch": "epoch", "eval_accuracy": "accuracy", "eval_loss": "loss"}
    logs = [log for log in trainer.state.log_history if "eval_accuracy" in log]
    return [{new: float(log[old]) for old, new in keys.items()} for log in logs]


def _write_meta(
    config: FinetuneConfig,
    source: ModelSource,
    loaded: LoadedModel,
    result: FinetuneResult,
    story: list[dict[str, float]],
    examples: tuple[Sequence[Example], Sequence[Example]],
    metrics: Mapping[str, float],
) -> None:
    train, judged = examples
    meta = {
        "run_id": result.folder.name,
        "time": datetime.now().astimezone().isoformat(),
        "base_model": source.name,
        "base_model_path": None if source.model_path is None else str(source.model_path.resolve()),
        "base_revision": loaded.revision or source.revision,
        "new_parameters": list(loaded.fresh),
        "weights_digest": loaded.weights_digest(),
        "dataset": config.dataset,
        "train_fingerprint": fingerprint(list(train)),
        "eval_fingerprint": fingerprint(list(judged)),
        "n_train": len(train),
        "n_eval": len(judged),
        "n_choices": _n_choices(judged),
        "accuracy": result.accuracy,
        "chance": result.chance,
        "epochs": story,
        "seed": config.seed,
        "train_seconds": round(float(metrics.get("train_runtime", 0.0)), 1),
        "settings": settings_of(config),
        "packages": {name: version(name) for name in ("torch", "transformers", "tokenizers", "accelerate", "datasets")},
    }
    (result.folder / FINETUNE_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
