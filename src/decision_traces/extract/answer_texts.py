"""Answers behind their prompts: which tokens they are there, and how probable a whole answer is."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float64

from decision_traces.data.example import Example
from decision_traces.errors import ModelError, UsageError
from decision_traces.model.load import LoadedModel
from decision_traces.outcomes.distribution import log_probabilities
from decision_traces.tokens import Encoding, TokenBatch, encode
from decision_traces.tracing.forward import logits_at

Answers = Literal["letter", "text"]
Cut = Callable[[Sequence[Encoding], int], Iterator[TokenBatch]]
"""Texts, most rows of a batch → batches, as the run's own are cut."""
_LOGITS_BYTES: Final = 256 << 20  # at once


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """The answers to every question as tokens behind its prompt.

    Attributes:
        space: Whether they have a space in front.
        whole: Prompt and answer in one, a list an example.
        ids: Tokens of each answer alone, a list an example.
    """

    space: bool
    whole: list[list[Encoding]]
    ids: list[list[list[int]]]

    def first(self, row: int) -> list[int]:
        """Return the first token of each answer of an example."""
        return [ids[0] for ids in self.ids[row]]


def answer_tokens(
    tokenizer: Any, examples: Sequence[Example], encodings: Sequence[Encoding], answers: Answers
) -> AnswerTokens:
    """Return the tokens of each choice behind each prompt, in the tokenizer's own form.

    The prompt is tokenised once more with each answer behind it. What is added there is the answer's form: with a
    space in front where that leaves the prompt's own tokens as they are, else without.

    Raises:
        ModelError: In neither form does every answer have tokens of its own behind its prompt (a letter: one).
    """
    reasons = []
    for space in (True, False):
        try:
            return _in_form(tokenizer, examples, encodings, answers, space=space)
        except _NoForm as reason:
            reasons.append(str(reason))
    raise ModelError(
        f"The answers cannot be scored with this tokenizer: with a space in front, {reasons[0]}; without, {reasons[1]}."
    )


class _NoForm(Exception):
    """Carries the reason why answers cannot be scored in a form."""


def _in_form(
    tokenizer: Any, examples: Sequence[Example], encodings: Sequence[Encoding], answers: Answers, *, space: bool
) -> AnswerTokens:
    field = "choice_labels" if answers == "letter" else "csqa_choices"
    choices: list[list[str]] = [e.fields[field] for e in examples]  # type: ignore[misc]
    texts = [f"{e.text}{' ' * space}{c}" for e, cs in zip(examples, choices, strict=True) for c in cs]
    found, tokens = iter(encode(tokenizer, texts, None)), AnswerTokens(space, [], [])
    for example, prompt, named in zip(examples, encodings, choices, strict=True):
        whole = [next(found) for _ in named]
        ids = [_behind(prompt, answer) for answer in whole]
        for text, own in zip(named, ids, strict=True):
            if not own or (answers == "letter" and len(own) > 1):
                raise _NoForm(f"{text!r} is no token of its own behind the prompt of {example.example_id}")
        if answers == "letter" and len({own[0] for own in ids}) < len(ids):
            raise _NoForm(f"two choices of {example.example_id} begin with the same token")
        tokens.whole.append(whole)
        tokens.ids.append(ids)
    return tokens


def _behind(prompt: Encoding, whole: Encoding) -> list[int]:
    """Return the tokens behind those of the prompt; none where the prompt's own are other ones then."""
    n = prompt.n_tokens
    ids: list[int] = whole.ids[n:].tolist() if np.array_equal(whole.ids[:n], prompt.ids) else []
    return ids


def refuse_too_long(tokens: AnswerTokens, examples: Sequence[Example], context: int | None) -> None:
    """Raise where a prompt with its answer is longer than the model was built for.

    Raises:
        UsageError: One is; a cut answer would have another score.
    """
    for example, whole in zip(examples, tokens.whole, strict=True):
        longest = max(text.n_tokens for text in whole)
        if context is not None and longest > context:
            raise UsageError(
                f"--answers text: the prompt of {example.example_id} has {longest} tokens with an answer behind it, "
                f"and the model was built for {context}. Score the letters: --answers letter."
            )


def text_scores(
    loaded: LoadedModel, texts: Sequence[Encoding], n_answer: Sequence[int], cut: Cut
) -> Float64[np.ndarray, " n"]:
    """Return the log-probability of the answer at the end of each text, nats: the sum over its tokens.

    Args:
        loaded: The model.
        texts: Prompt and answer in one.
        n_answer: How many tokens of each are the answer.
        cut: Cuts them into batches.
    """
    scores = np.zeros(len(texts))
    for batch in cut(texts, max(1, _LOGITS_BYTES // (4 * max(n_answer) * loaded.vocab_size))):
        end, count = torch.tensor(batch.lengths), torch.tensor([n_answer[row] for row in batch.rows])
        step = torch.arange(int(count.max()))
        before = torch.minimum((end - count - 1)[:, None] + step, (end - 2)[:, None])  # each token of the answer
        logits = logits_at(loaded.model, batch, before, loaded.device)
        ids = batch.input_ids.gather(1, before + 1).to(loaded.device)
        logs = log_probabilities(logits, ids).cpu().double()
        scores[list(batch.rows)] = torch.where(step < count[:, None], logs, 0.0).sum(1).numpy()
    return scores
