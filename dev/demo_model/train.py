"""Train the embedded model: `python -m dev.demo_model.train`.

Two steps: a byte-level BPE on texts of the training split, then a GPT-2 on a fresh stream of training texts,
one text a row from position 0 and padded on the right, as the commands of this package run a model. About
a quarter of an hour on two cores; if they have other work too, OMP_WAIT_POLICY=PASSIVE saves much waiting.
"""

import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch
import tyro
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from decision_traces.data import tinyworld
from decision_traces.demo import MODEL_DIR

END_OF_TEXT = "<|endoftext|>"
# How often each word, and each answer once more, is given to the BPE by itself.
WORD_COPIES = 300
ANSWER_COPIES = 1000
# Fills rows up on the right, where no loss is taken; not the pad token, for which transformers would warn.
FILLER = 1
# Wider than GPT-2's 0.02: the residual stream is six times narrower.
INIT_STD = 0.05
# Learning rate of the blocks' matrices over that of everything else.
MUON_LR_FACTOR = 2.0
CONSOLE = Console()


@dataclass(frozen=True)
class Settings:
    """How to train; the defaults are those of the embedded model.

    Attributes:
        out: Folder for the model and its tokenizer.
        seed: Seed of the weights, the texts and their order.
        texts: Number of training texts; each is seen once.
        batch: Texts a step.
        lr: Highest learning rate, after the warm-up.
        warmup: Share of the steps with a rising learning rate.
        answer_weight: Weight in the loss of the last token of a text and of each token after `Answer:`; all
            others weigh 1.
        vocab: Size of the BPE.
        width: Width of the residual stream.
        layers: Number of blocks.
        heads: Attention heads a block.
        positions: Longest text in tokens.
        threads: Threads for torch.
    """

    out: Path = MODEL_DIR
    seed: int = 7
    texts: int = 150_000
    batch: int = 40
    lr: float = 2e-3
    warmup: float = 0.05
    answer_weight: float = 4.0
    vocab: int = 1024
    width: int = 128
    layers: int = 5
    heads: int = 4
    positions: int = 128
    threads: int = 2


def main(settings: Settings) -> None:
    """Train the tokenizer and the model and write both to `settings.out`."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    began = time.monotonic()
    tokenizer = train_tokenizer(settings)
    model = build_model(settings, tokenizer)
    rows = encode(tokenizer, islice(tinyworld.training_texts(settings.seed), settings.texts))
    fit(model, tokenizer, rows, settings)
    seconds = time.monotonic() - began
    record = {
        "seed": settings.seed,
        "texts": settings.texts,
        "tokens": sum(map(len, rows)),
        "seconds": round(seconds),
    }
    save(settings.out, tokenizer, model, record)
    CONSOLE.print(f"{settings.out}: {seconds / 60:.1f} minutes, {record['tokens']:,} tokens")


def save(out: Path, tokenizer: PreTrainedTokenizerFast, model: GPT2LMHeadModel, record: dict[str, int]) -> None:
    """Write everything beside a folder, and move it in only when all of it is there; other files stay."""
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
        new = Path(beside)
        tokenizer.save_pretrained(new)
        model.save_pretrained(new)
        (new / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for file in sorted(new.iterdir()):
            file.replace(out / file.name)


def train_tokenizer(settings: Settings) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the published training rows.

    Each word is given some more times by itself, answers oftenest, so that rare words become one token as
    well as common ones.
    """
    texts = [e.text for e in tinyworld.examples("train")]
    words = [word for text in texts for word in set(re.findall(r"\w+", text))]
    answers = [text.rsplit(maxsplit=1)[-1] for text in texts]
    alone = [*sorted(set(words)) * WORD_COPIES, *sorted(set(answers)) * ANSWER_COPIES]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*texts, *(f" {word}" for word in alone)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=settings.positions,
        clean_up_tokenization_spaces=False,
    )


def build_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Return an untrained GPT-2 of the asked size, without dropout: no text is seen twice."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=settings.positions,
            n_embd=settings.width,
            n_layer=settings.layers,
            n_head=settings.heads,
            initializer_range=INIT_STD,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: Iterator[str]) -> list[list[int]]:
    """Return the token ids of each text."""
    rows: list[list[int]] = []
    while chunk := list(islice(texts, 10_000)):
        rows += tokenizer(chunk, add_special_tokens=False)["input_ids"]
    return rows


def batches(rows: list[list[int]], settings: Settings) -> Iterator[list[list[int]]]:
    """Yield batches of texts of like length; their order and membership change with the seed."""
    rng = Random(f"batches {settings.seed}")
    pool = settings.batch * 32
    for start in range(0, len(rows), pool):
        near = sorted(rows[start : start + pool], key=len)
        groups = [near[i : i + settings.batch] for i in range(0, len(near), settings.batch)]
        rng.shuffle(groups)
        yield from groups


def padded(rows: list[list[int]]) -> Tensor:
    """Return the rows as one tensor, filled up on the right: [rows, longest]."""
    tensors = [torch.tensor(row) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=FILLER)


def loss_of(model: GPT2LMHeadModel, batch: list[list[int]], answer_weight: float, marker: list[int]) -> Tensor:
    """Return the mean next-token loss of a batch, answers weighing `answer_weight`.

    Args:
        model: The model.
        batch: Token ids of each text.
        answer_weight: Weight of the last token of a text and of each token after `marker`.
        marker: The two tokens of ` Answer:`.
    """
    ids = padded(batch)
    lengths = torch.tensor([len(row) for row in batch])[:, None]
    target = torch.arange(1, ids.shape[1])[None]  # position of the token to be predicted
    answers = target == lengths - 1
    answers[:, 1:] |= (ids[:, :-2] == marker[0]) & (ids[:, 1:-1] == marker[1]) & (target[:, 1:] < lengths)
    weights = (target < lengths).float() + (answer_weight - 1) * answers
    # Right padding and causal attention: no real token sees a pad, so no mask is needed.
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Return the learning rate of a step: a linear rise, then half a cosine down to a fiftieth."""
    rise = max(1, round(settings.warmup * steps))
    if step < rise:
        return settings.lr * (step + 1) / rise
    return settings.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))))


def make_optimizers(model: GPT2LMHeadModel) -> tuple[torch.optim.Optimizer, ...]:
    """Return Muon for the matrices of the blocks and AdamW for embeddings, gains and biases.

    Muon makes the most of few tokens: the heads that copy appear much sooner than with AdamW alone.
    """
    matrices = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = torch.optim.Muon(matrices, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0)
    for optimizer, factor in ((muon, MUON_LR_FACTOR), (adamw, 1.0)):
        for group in optimizer.param_groups:
            group["lr_factor"] = factor
    return muon, adamw


def fit(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, rows: list[list[int]], settings: Settings) -> None:
    """Train the model on every row once, telling the held-out accuracy by kind now and then."""
    optimizers = make_optimizers(model)
    held_out = validation_rows(tokenizer)
    marker = tokenizer(" Answer:")["input_ids"]
    steps = math.ceil(len(rows) / settings.batch)
    model.train()
    began = time.monotonic()
    for step, batch in enumerate(batches(rows, settings)):
        loss = loss_of(model, batch, settings.answer_weight, marker)
        model.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, settings) * group["lr_factor"]
            optimizer.step()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            told = "  ".join(f"{kind} {accuracy(model, r):.2f}" for kind, r in held_out.items())
            CONSOLE.print(f"{step + 1}/{steps} {time.monotonic() - began:.0f}s {loss:.3f}  {told}", soft_wrap=True)
    model.eval()


def validation_rows(tokenizer: PreTrainedTokenizerFast) -> dict[str, list[list[int]]]:
    """Return the token ids of the first validation rows, by kind."""
    rows: dict[str, list[list[int]]] = {kind: [] for kind in tinyworld.KINDS}
    for example in tinyworld.examples("validation", 700):
        rows[str(example.fields["kind"])] += encode(tokenizer, iter([example.text]))
    return rows


@torch.no_grad()
def accuracy(model: GPT2LMHeadModel, rows: list[list[int]]) -> float:
    """Return the share of rows whose last token is the model's first choice for it."""
    model.eval()
    ids = padded(rows)
    last = torch.tensor([len(row) - 1 for row in rows])
    each = torch.arange(len(rows))
    best = model(input_ids=ids, use_cache=False).logits[each, last - 1].argmax(-1)
    model.train()
    return float((best == ids[each, last]).float().mean())


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
