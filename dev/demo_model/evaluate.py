"""Judge the embedded model on held-out worlds: `python -m dev.demo_model.evaluate`.

Prints the figures of the model card and writes them into the model's folder: to `figures.json`, and between
the two marks in `README.md`.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerBase

from decision_traces.data import tinyworld
from decision_traces.demo import MODEL_DIR
from decision_traces.folders.plain import new_file
from dev.demo_model.ngram import KneserNey

BEGIN, END = "<!-- figures: written by evaluate.py -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Settings:
    """What to judge.

    Attributes:
        model: Folder of the model.
        split: Split of tinyworld.
        limit: At most so many texts; None for the whole split.
        baselines: Whether to train the n-gram baselines too (about two minutes).
        write: Whether to write `figures.json` and the card.
    """

    model: Path = MODEL_DIR
    split: str = "test"
    limit: int | None = None
    baselines: bool = True
    write: bool = True


@dataclass(frozen=True, slots=True)
class Judged:
    """What the model made of one text.

    Attributes:
        kind: Kind of item.
        losses: Loss of every token but the first, in nats.
        right: Whether the last token is the model's first choice.
        decided: First layer from which the final choice stays first to the end; 0 is the embedding.
    """

    kind: str
    losses: list[float]
    right: bool
    decided: int


@dataclass(frozen=True, slots=True)
class KindFigures:
    """Figures of one kind of item; the layer is a mean over the right ones, None without any."""

    items: int
    accuracy: float
    loss_of_answer: float
    decided_at_layer: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of the card; losses are in nats a token, over all tokens but the first of each text."""

    split: str
    texts: int
    tokens: int
    layers: int
    loss: float
    bigram_loss: float | None
    five_gram_loss: float | None
    accuracy: float
    kinds: dict[str, KindFigures]
    training: dict[str, int]


def main(settings: Settings) -> None:
    """Judge the model, print the figures and write them down."""
    tokenizer = AutoTokenizer.from_pretrained(settings.model, trust_remote_code=False)
    model = GPT2LMHeadModel.from_pretrained(settings.model).eval()
    training = json.loads((settings.model / "training.json").read_text(encoding="utf-8"))
    examples = list(tinyworld.examples(settings.split, settings.limit))
    rows = [tokenizer(e.text)["input_ids"] for e in examples]
    judged = [judge(model, row, str(e.fields["kind"])) for row, e in zip(rows, examples, strict=True)]
    bigram, five_gram = baseline_losses(tokenizer, rows, training) if settings.baselines else (None, None)
    figures = Figures(
        split=settings.split,
        texts=len(rows),
        tokens=sum(len(j.losses) for j in judged),
        layers=int(model.config.n_layer),
        loss=float(np.mean(np.concatenate([j.losses for j in judged]))),
        bigram_loss=bigram,
        five_gram_loss=five_gram,
        accuracy=float(np.mean([j.right for j in judged])),
        kinds={kind: of_kind([j for j in judged if j.kind == kind]) for kind in tinyworld.KINDS},
        training=training,
    )
    told = table(figures)
    Console().print(Markdown(told))
    if settings.write:
        write(settings.model, figures, told)


@torch.no_grad()
def judge(model: GPT2LMHeadModel, row: list[int], kind: str) -> Judged:
    """Run one text and follow the choice of its last prediction through the layers.

    Args:
        model: The model.
        row: Token ids of the text.
        kind: Kind of item.
    """
    ids = torch.tensor([row])
    out = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    logits: Tensor = out.logits[0, :-1]  # [tokens - 1, vocab]
    losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    # hidden_states: the embedding, then each block's output; transformers gives the last one after ln_f.
    before = torch.stack([h[0, -2] for h in out.hidden_states[:-1]])  # [layers, width]
    lens = model.lm_head(model.transformer.ln_f(before)).argmax(-1).tolist()
    final = int(logits[-1].argmax())
    return Judged(kind, losses.tolist(), final == row[-1], decided_layer([*lens, final]))


def decided_layer(choices: list[int]) -> int:
    """Return the first layer from which the last layer's choice stays to the end."""
    layer = len(choices) - 1
    while layer > 0 and choices[layer - 1] == choices[-1]:
        layer -= 1
    return layer


def of_kind(judged: list[Judged]) -> KindFigures:
    """Sum up the items of one kind."""
    right = [j for j in judged if j.right]
    return KindFigures(
        items=len(judged),
        accuracy=len(right) / len(judged),
        loss_of_answer=float(np.mean([j.losses[-1] for j in judged])),
        decided_at_layer=float(np.mean([j.decided for j in right])) if right else None,
    )


def baseline_losses(
    tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], training: dict[str, int]
) -> tuple[float, float]:
    """Return the losses on these rows of a bigram and a 5-gram trained on the model's own training texts."""
    seen = list(_training_rows(tokenizer, training))
    return _loss(KneserNey(seen, 2, len(tokenizer)), rows), _loss(KneserNey(seen, 5, len(tokenizer)), rows)


def _training_rows(tokenizer: PreTrainedTokenizerBase, training: dict[str, int]) -> Iterator[list[int]]:
    texts = islice(tinyworld.training_texts(training["seed"]), training["texts"])
    while chunk := list(islice(texts, 10_000)):
        yield from tokenizer(chunk)["input_ids"]


def _loss(model: KneserNey, rows: list[list[int]]) -> float:
    """Return the mean loss over the same tokens as the model's: all but the first of each text."""
    return float(np.mean(np.concatenate([model.losses(row)[1:] for row in rows])))


def table(figures: Figures) -> str:
    """Return the figures as Markdown."""
    lines = ["| kind of item | items | last token right | loss of last token | decided at layer |"]
    lines.append("|---|---:|---:|---:|---:|")
    for kind, k in figures.kinds.items():
        layer = "–" if k.decided_at_layer is None else f"{k.decided_at_layer:.1f}"
        lines.append(f"| {kind} | {k.items} | {k.accuracy:.1%} | {k.loss_of_answer:.3f} | {layer} |")
    lines.append(f"| all | {figures.texts} | {figures.accuracy:.1%} | | |")
    lines += ["", "| next-token loss | nats a token |", "|---|---:|", f"| this model | {figures.loss:.3f} |"]
    for name, loss in (("5-gram", figures.five_gram_loss), ("bigram", figures.bigram_loss)):
        lines += [] if loss is None else [f"| {name}, interpolated Kneser–Ney | {loss:.3f} |"]
    return "\n".join(lines)


def write(folder: Path, figures: Figures, told: str) -> None:
    """Write `figures.json`, and the table between the marks of the card."""
    with new_file(folder / "figures.json") as file:
        file.write(f"{json.dumps(asdict(figures), indent=2)}\n".encode())
    card = folder / "README.md"
    before, _, rest = card.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    with new_file(card) as file:
        file.write(f"{before}{BEGIN}\n{told}\n{END}{after}".encode())


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
