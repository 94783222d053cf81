"""How far every stored array of a trained model is from what plain transformers computes.

    python -m benchmarks.fidelity [NAME | FOLDER ...] [--data_dir FOLDER] [--markdown FILE]

Every checkpoint is traced over real texts with everything captured, in float32, in padded batches and once more row by
row. Each row is then run by plain transformers alone, by code that shares nothing with the package (`plain_pass`).
Exit status 1 where a stored number is further off than the bars below, an array not the same bit for bit at batch size
1, or a token not the tokenizer's.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.checkpoints import NAMES, SHARED, Checkpoint, checkpoint
from benchmarks.plain_pass import run_alone
from decision_traces import TraceStore
from decision_traces.extract.answer import AnswerConfig, extract_answers
from decision_traces.extract.texts import TextConfig, extract_texts
from decision_traces.model.load import quiet_transformers

BAR: Final = 1e-5
"""Most difference of an array, relative to its largest value: the order of sums, in float32."""
BAR_OF_OUTCOMES: Final = 1e-4
"""Most difference of a probability, relative to itself, and of an entropy, relative to the largest: what logits of 10
that are 1e-5 off relatively explain."""
_CAPTURES: Final = ("attn", "qkv", "hidden", "resid", "attn_out", "mlp_out", "head_out", "mlp_act", "logits")
_HEADINGS: Final = ("checkpoint", "task", "array", "absolute", "relative", "largest", "at batch size 1")
Found = dict[str, "Worst"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to check."""

    checkpoints: tyro.conf.Positional[tuple[str, ...]] = NAMES
    """Names of known checkpoints, or folders."""
    data_dir: Path = SHARED / "data"
    """Folder with the published data; without one, texts and questions are the package's own."""
    limit: int = 20
    """How many texts."""
    max_seq_len: int = 128
    """T: longer texts are cut."""
    markdown: Path | None = None
    """Write the table here."""


@dataclass(slots=True)
class Worst:
    """The worst of one array, or of one kind of outcome.

    Attributes:
        bar: The most that `relative` may be.
        bar_alone: The same at batch size 1.
        absolute: The largest difference; infinite where shapes differ.
        relative: The same, relative to the largest value; of probabilities, to each of them.
        largest: The largest magnitude.
    """

    bar: float = BAR
    bar_alone: float = 0.0
    absolute: float = 0.0
    relative: float = 0.0
    largest: float = 0.0

    def add(self, stored: Any, right: Any) -> None:
        """Take in what is stored of one row and what is right."""
        difference = self._difference(stored, right)
        self.relative = self.absolute / self.largest if self.largest else _largest(difference)

    def add_each(self, stored: Any, right: Any) -> None:
        """Take in positive numbers, each to be held against itself."""
        self.relative = max(self.relative, _largest(self._difference(stored, right) / np.asarray(right)))

    def _difference(self, stored: Any, right: Any) -> np.ndarray:
        a, b = np.asarray(stored, np.float64), np.asarray(right, np.float64)
        difference = a - b if a.shape == b.shape else np.full(b.shape, np.inf)
        self.absolute, self.largest = max(self.absolute, _largest(difference)), max(self.largest, _largest(b))
        return difference


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0.0))


# -- what a checkpoint can do --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskKind:
    """One task, and plain transformers' part of it.

    Attributes:
        side: What the names of the arrays begin with.
        auto: Loads a model for it.
        outcomes: Adds a row's outcomes, given its logits.
    """

    side: str
    auto: Any
    outcomes: Callable[[Found, Mapping[str, Any], np.ndarray | None], None]


def _distribution(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and entropies (nats) of rows of logits, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    log = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.exp(log), -(np.exp(log) * log).sum(axis=-1)


def _next_token(found: Found, row: Mapping[str, Any], logits: np.ndarray | None) -> None:
    """The last token from those before it, and what comes after it."""
    assert logits is not None
    for kind, names in (("next", ("true", "pred")), ("after", ("pred",))):
        if row[f"{kind}_pos"] >= 0:
            probs, entropy = _distribution(logits[row[f"{kind}_pos"]])
            right = [probs[row[f"{kind}_{name}_id"]] for name in names]
            found["probabilities"].add_each([row[f"{kind}_{name}_prob"] for name in names], right)
            found["probabilities"].add_each(row[f"{kind}_topk_probs"], probs[row[f"{kind}_topk_ids"]])
            found["entropies"].add(row[f"{kind}_entropy"], entropy)


def _masked(found: Found, row: Mapping[str, Any], logits: np.ndarray | None) -> None:
    """The token behind every mask."""
    assert logits is not None
    at = np.asarray(row["masked_pos"], dtype=np.int64)
    probs, entropies = _distribution(logits[at])
    for name in ("true", "pred"):
        right = probs[np.arange(len(at)), np.asarray(row[f"masked_{name}_ids"], dtype=np.int64)]
        found["probabilities"].add_each(row[f"masked_{name}_probs"], right)
    found["entropies"].add(row["masked_entropies"], entropies)


def _answer(found: Found, row: Mapping[str, Any], logits: np.ndarray | None) -> None:
    """The letters of the choices behind the prompt."""
    assert logits is not None
    scores = logits[row["answer_pos"]][np.asarray(row["choice_token_ids"], dtype=np.int64)]
    found["probabilities"].add_each(row["choice_probs"], _distribution(scores)[0])


def _nothing(_found: Found, _row: Mapping[str, Any], _logits: np.ndarray | None) -> None:
    """An encoder without a head has no outcome."""


_TASKS: Final[Mapping[str, TaskKind]] = {
    "next token": TaskKind("dec", transformers.AutoModelForCausalLM, _next_token),
    "answers": TaskKind("dec", transformers.AutoModelForCausalLM, _answer),
    "masked": TaskKind("enc", transformers.AutoModelForMaskedLM, _masked),
    "encode": TaskKind("enc", transformers.AutoModel, _nothing),
}


def tasks_of(folder: Path) -> tuple[str, ...]:
    """Return what a checkpoint can do, by the class that its config names."""
    (name,) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return ("next token", "answers")
    return ("masked", "encode") if name.endswith("ForMaskedLM") else ("encode",)


# -- one checkpoint and one task -----------------------------------------------------------------------------


def trace(which: Checkpoint, task: str, settings: Settings, batch_size: int, out: Path) -> Path:
    """Extract everything of a task in float32."""
    published = settings.data_dir.is_dir()
    options: dict[str, Any] = {"model": which.name, "model_path": which.folder, "limit": settings.limit}
    options |= {"capture": _CAPTURES, "dtype": "float32", "batch_size": batch_size, "out_dir": out}
    options |= {"data_dir": settings.data_dir if published else None}
    if task == "answers":
        # With the package's own questions where there are no others; such prompts are never cut.
        data = "csqa" if published and which.name != "demo" else "tinyworld"
        return extract_answers(AnswerConfig(**options, dataset=data))
    if which.texts:
        options["text_file"] = out.with_suffix(".txt")
        options["text_file"].write_text("\n".join(which.texts), encoding="utf-8")
    elif published:
        options |= {"dataset": "wikitext2"}
    else:
        options |= {"dataset": "tinyworld"}
    if task == "encode":
        options["capture"] = tuple(name for name in _CAPTURES if name != "logits")
    kind = "causal" if task == "next token" else task
    return extract_texts(TextConfig(**options, task=kind, max_seq_len=settings.max_seq_len))


def compare(run: Path, model: Any, tokenizer: Any, task: str) -> Found:
    """Return the worst of the tokens, of every array of a run and of its outcomes, against plain transformers."""
    store, kind = TraceStore(run), _TASKS[task]
    found = {"input_ids": Worst(bar=0.0), **{name: Worst() for name in store.arrays()}}
    found |= {name: Worst(BAR_OF_OUTCOMES, BAR_OF_OUTCOMES) for name in ("probabilities", "entropies")}
    for number, row in enumerate(store.tokens.to_dict("records")):
        read = tokenizer(row["text"], truncation=True, max_length=store.T)["input_ids"]
        found["input_ids"].add(_unmasked(row), read)
        right, logits = run_alone(model, kind.side, _inputs(row))
        if logits is not None:
            right[f"{kind.side}_logits"] = logits
        for name in store.arrays():
            stored = store.array(name).read(example=number)
            found[name].add(stored[tuple(slice(n) for n in right[name].shape)], right[name])
        kind.outcomes(found, row, logits)
    return {name: worst for name, worst in found.items() if worst.largest}


def _inputs(row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return what the run says that the model read."""
    names = [name for name in ("input_ids", "token_type_ids") if row.get(name) is not None]
    return {name: torch.tensor(row[name][: row["n_tokens"]].astype(np.int64))[None] for name in names}


def _unmasked(row: Mapping[str, Any]) -> np.ndarray:
    """Return the ids of a row with what the mask token stands for put back."""
    ids = np.array(row["input_ids"][: row["n_tokens"]])
    for position, true_id in zip(row.get("masked_pos", ()), row.get("masked_true_ids", ()), strict=True):
        if true_id >= 0:  # else the text itself has a mask there
            ids[position] = true_id
    return ids


def rows_of(which: Checkpoint, task: str, settings: Settings, scratch: Path) -> Iterator[tuple[list[str], bool]]:
    """Yield the table's rows of one task of a checkpoint, and whether each is within its bar."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = _TASKS[task].auto.from_pretrained(which.folder, **options).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(which.folder)
    places = {n: scratch / f"{which.name} {task} {n}" for n in (settings.limit, 1)}
    batched, single = (
        compare(trace(which, task, settings, n, place), model, tokenizer, task) for n, place in places.items()
    )
    for name, worst in batched.items():
        alone = single[name]
        same = "identical" if alone.absolute == 0 else f"{alone.relative:.1e}"
        figures = [f"{worst.absolute:.1e}", f"{worst.relative:.1e}", f"{worst.largest:.4g}", same]
        ok = worst.relative <= worst.bar and alone.relative <= alone.bar_alone
        yield [which.name, task, name, *figures], ok


def main(argv: Sequence[str] | None = None) -> None:
    """Check, print, write.

    Raises:
        SystemExit: A number is further off than its bar (1); flags that cannot be read.
    """
    settings = tyro.cli(Settings, args=argv, use_underscores=True)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    table, lines, good = Table(*_HEADINGS), [_line(_HEADINGS), "|---|---|---|" + "---:|" * 4], True
    with tempfile.TemporaryDirectory() as place, quiet_transformers():
        for asked in settings.checkpoints:
            which = checkpoint(asked, Path(place))
            for task in tasks_of(which.folder):
                for cells, ok in rows_of(which, task, settings, Path(place)):
                    table.add_row(*cells, style=None if ok else "red")
                    lines.append(_line(cells))
                    good = good and ok
    console.print(table)
    console.print("Every number is within its bar." if good else "NOT every number is within its bar.")
    if settings.markdown is not None:
        settings.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not good:
        raise SystemExit(1)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
