"""Questions as the trainer takes them: token ids of every choice, padded together in batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import datasets
import torch

from decision_traces.data.example import Example
from decision_traces.tokens import Encoding, encode_choices


def answer_of(example: Example) -> int:
    """Return which choice is right."""
    return cast(int, example.fields["label_idx"])


def n_choices(examples: Sequence[Example]) -> int:
    """Return how many choices each question has."""
    choices = examples[0].fields["choice_texts"]
    return len(choices) if isinstance(choices, list) else 0


def as_dataset(tokenizer: Any, examples: Sequence[Example], limit: int) -> datasets.Dataset:
    """Return the questions as the trainer's data set: token ids of every choice, label, longest choice."""
    encodings, choices = encode_choices(tokenizer, examples, limit), n_choices(examples)
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
