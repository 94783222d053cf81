"""Fine-tuning an encoder on multiple-choice questions, with transformers' own trainer."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from decision_traces.data.example import Example
from decision_traces.data.local import fingerprint
from decision_traces.data.prompts import read_questions
from decision_traces.data.registry import DataSource
from decision_traces.errors import DataError
from decision_traces.finetuning.batches import Collator, answer_of, as_dataset, n_choices
from decision_traces.finetuning.config import FinetuneConfig, check_flags, told_settings
from decision_traces.finetuning.place import begin, checkpoint_place, default_folder, finish, sentences
from decision_traces.folders.place import FolderPlace
from decision_traces.format.arrays import FINETUNE_FILE
from decision_traces.model.digest import weights_digest
from decision_traces.model.load import LoadedModel, ModelSource, load_model, quiet_transformers
from decision_traces.tokens import pad_id

_LOGS_AN_EPOCH: Final = 10


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
    check_flags(config)
    tell = tell or _nobody
    set_seed(config.seed)
    with ExitStack() as held:
        place = None if config.out_dir is None else held.enter_context(checkpoint_place(config, config.out_dir))
        train = _questions(config, "train", config.train_limit)
        judged = _questions(config, "validation", config.eval_limit)
        source = config.model_source()
        tell(f"Loading {source.location}")
        loaded = load_model(source, "multiple_choice")
        if place is None:
            folder = default_folder(config, source.name.split("/")[-1], len(train))
            place = held.enter_context(checkpoint_place(config, folder))
        with sentences(place):
            return _train(config, source, loaded, place, (train, judged), tell)


def _train(
    config: FinetuneConfig,
    source: ModelSource,
    loaded: LoadedModel,
    place: FolderPlace,
    questions: tuple[Sequence[Example], Sequence[Example]],
    tell: Teller,
) -> FinetuneResult:
    """Train in the folder of an unfinished checkpoint, and give it its name."""
    train, judged = questions
    last = begin(config, place, loaded)
    trainer = _trainer(config, loaded, train, judged, place.folder, tell)
    tell(f"Training on {len(train)} questions, judging on {len(judged)}; checkpoint in {place.target}")
    with quiet_transformers():
        outcome = trainer.train(resume_from_checkpoint=last)
    story = _story(trainer)
    trainer.remove_callback(_Told)
    with quiet_transformers():
        metrics = trainer.evaluate()
        _save(trainer, loaded, place.folder)
    result = FinetuneResult(place.target, float(metrics["eval_accuracy"]), len(judged), 1 / n_choices(judged))
    _write_meta(place.folder, config, source, loaded, result, story, questions, outcome.metrics)
    finish(place, anonymous=config.anonymous)
    return result


def _nobody(line: str, /) -> None:
    """Tell nobody."""


def _questions(config: FinetuneConfig, split: str, limit: int | None) -> list[Example]:
    examples = read_questions(DataSource(config.dataset, split, config.data_dir, None, limit))
    unanswered = sum(answer_of(e) < 0 for e in examples)
    if unanswered:
        raise DataError(f"{config.dataset} ({split}): {unanswered} of {len(examples)} questions have no answer.")
    return examples


# -- training -----------------------------------------------------------------------------------------------


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
    folder: Path,
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
        "time": (datetime.now(UTC) if config.anonymous else datetime.now().astimezone()).isoformat(),
        "base_model": source.name,
        "base_model_path": None if config.anonymous or source.model_path is None else str(source.model_path),
        "base_revision": loaded.revision or source.revision,
        "new_parameters": list(loaded.fresh),
        "weights_digest": weights_digest(loaded.model),
        "dataset": config.dataset,
        "train_fingerprint": fingerprint(list(train)),
        "eval_fingerprint": fingerprint(list(judged)),
        "n_train": len(train),
        "n_eval": len(judged),
        "n_choices": n_choices(judged),
        "accuracy": result.accuracy,
        "chance": result.chance,
        "epochs": story,
        "seed": config.seed,
        "train_seconds": round(float(metrics.get("train_runtime", 0.0)), 1),
        "settings": told_settings(config),
        "packages": {name: version(name) for name in ("torch", "transformers", "tokenizers", "accelerate", "datasets")},
    }
    (folder / FINETUNE_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
