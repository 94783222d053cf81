"""What the analyses return: arrays whose shapes are documented and checked once, and a table form."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Float64, Int32, Int64

_STEP: Final[Mapping[str, float]] = {"hidden": 0.0, "pre_attn": 0.0, "post_attn": 0.5, "post_mlp": 1.0}
_TOKENS: Final = ("true", "pred", "competitor")
_CURVES: Final = ("entropy", "margin", "kl_to_final")


def _need(n: int, **counted: Any) -> None:
    """Raise unless all of these have n entries."""
    wrong = {name: len(values) for name, values in counted.items() if len(values) != n}
    if wrong:
        raise ValueError(f"all fields need {n} entries, got {wrong}")


def _correct(correct: Bool[np.ndarray, " n"], known: Bool[np.ndarray, " n"]) -> pd.Series:
    """Return a column that is NA where the truth is not known."""
    return pd.Series(correct).astype("boolean").mask(~known)


def _part_of(result: Any, part: slice) -> dict[str, Any]:
    """Return the fields of a result for some of its examples: whatever is an array or a tuple has one entry each."""

    def cut(value: Any) -> Any:
        if isinstance(value, TokenPath):
            return TokenPath(**_part_of(value, part))
        return value[part] if isinstance(value, np.ndarray | tuple) else value

    return {f.name: cut(getattr(result, f.name)) for f in fields(result)}


@dataclass(frozen=True, slots=True)
class TokenPath:
    """The lens of one token of each example at every depth.

    Attributes:
        logit: (n, depth); NaN where the example has no such token, as is prob.
        prob: (n, depth) probability over the vocabulary.
        rank: (n, depth) one more than the number of tokens with a larger logit; -1 where there is no such token.
    """

    logit: Float32[np.ndarray, "n depth"]
    prob: Float32[np.ndarray, "n depth"]
    rank: Int32[np.ndarray, "n depth"]

    def __post_init__(self) -> None:
        """Check that all fields speak of the same examples and depths."""
        if not self.logit.shape == self.prob.shape == self.rank.shape:
            raise ValueError(f"logit, prob and rank need one shape, got {self.logit.shape}")


@dataclass(frozen=True, slots=True)
class LensTrajectories:
    """Decisions seen through the logit lens at every state of one stage of the residual stream.

    Attributes:
        stage: "hidden" (0 is the embedding, l the output of layer l, the last one the model's end), "pre_attn",
            "post_attn" or "post_mlp" (one state a layer).
        example_id: n examples, those without a decision left out.
        correct: (n,) whether the model's own choice is right; False where the truth is not known.
        true_id: (n,) the true token; -1 where it is not known.
        pred_id: (n,) the token the model chooses in the end.
        competitor_id: (n,) the most probable other than the true one in the end (see `Decisions`).
        true: The way of the true token.
        pred: The way of the predicted token.
        competitor: The way of the competitor.
        topk_ids: (n, depth, k) most probable tokens, best first.
        topk_probs: (n, depth, k) their probabilities.
        entropy: (n, depth) of the whole distribution, nats.
        margin: (n, depth) top-1 minus top-2 logit.
        kl_to_final: (n, depth) KL divergence of the final distribution from this one, nats; 0 at the end.
        model_error: Largest |probability by the lens at the end of the model - probability stored by the run|;
            in multiple-choice runs that over the choices. NaN where the run stored none.
        position: (n,) token position of each decision: a text with several masks has several. None: not known.
    """

    stage: str
    example_id: tuple[str, ...]
    correct: Bool[np.ndarray, " n"]
    true_id: Int32[np.ndarray, " n"]
    pred_id: Int32[np.ndarray, " n"]
    competitor_id: Int32[np.ndarray, " n"]
    true: TokenPath
    pred: TokenPath
    competitor: TokenPath
    topk_ids: Int32[np.ndarray, "n depth k"]
    topk_probs: Float32[np.ndarray, "n depth k"]
    entropy: Float32[np.ndarray, "n depth"]
    margin: Float32[np.ndarray, "n depth"]
    kl_to_final: Float32[np.ndarray, "n depth"]
    model_error: float
    position: Int64[np.ndarray, " n"] | None = None

    def __post_init__(self) -> None:
        """Check that all fields speak of the same examples and depths."""
        if self.stage not in _STEP:
            raise ValueError(f"stage needs to be one of {tuple(_STEP)}, got {self.stage!r}")
        shape = self.topk_ids.shape[:2]
        curves = {name: getattr(self, name) for name in _CURVES} | {w: getattr(self, w).prob for w in _TOKENS}
        if self.topk_probs.shape != self.topk_ids.shape or any(c.shape != shape for c in curves.values()):
            raise ValueError(f"all trajectories need the shape {shape}")
        _need(shape[0], example_id=self.example_id, correct=self.correct, true_id=self.true_id)
        _need(shape[0], pred_id=self.pred_id, competitor_id=self.competitor_id)

    @property
    def top_id(self) -> Int32[np.ndarray, "n depth"]:
        """The most probable token at every depth."""
        top: np.ndarray = self.topk_ids[:, :, 0]
        return top

    @property
    def known(self) -> Bool[np.ndarray, " n"]:
        """Whether the truth is known."""
        known: np.ndarray = self.true_id >= 0
        return known

    @property
    def depth(self) -> Float64[np.ndarray, " depth"]:
        """How many layers lie behind each state; `post_attn` of layer l has l and a half."""
        depths: np.ndarray = np.arange(self.topk_ids.shape[1]) + _STEP[self.stage]
        return depths

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return int(self.topk_ids.shape[1]) - (self.stage == "hidden")

    def rows(self, part: slice) -> "LensTrajectories":
        """Return the same for some of the examples."""
        return LensTrajectories(**_part_of(self, part))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per (example, depth)."""
        n, depths = self.topk_ids.shape[:2]
        per_example = {
            "correct": _correct(self.correct, self.known),
            "true_id": pd.Series(self.true_id),
            "pred_id": pd.Series(self.pred_id),
            "competitor_id": pd.Series(self.competitor_id),
        }
        columns: dict[str, Any] = {
            "example_id": np.repeat(np.asarray(self.example_id, dtype=object), depths),
            "stage": pd.Categorical([self.stage] * (n * depths), categories=list(_STEP)),
            "depth": np.tile(self.depth, n),
        }
        columns |= {} if self.position is None else {"position": np.repeat(self.position, depths)}
        columns |= {name: values.repeat(depths).array for name, values in per_example.items()}
        for which in _TOKENS:
            path = getattr(self, which)
            columns |= {f"{which}_{f.name}": getattr(path, f.name).ravel() for f in fields(path)}
        columns |= {name: getattr(self, name).ravel() for name in _CURVES}
        columns["topk_ids"] = list(self.topk_ids.reshape(n * depths, -1))
        columns["topk_probs"] = list(self.topk_probs.reshape(n * depths, -1))
        return pd.DataFrame(columns)


@dataclass(frozen=True, slots=True)
class DecisionDepth:
    """When each decision was made; depths count layers, 0 is the embedding.

    Attributes:
        example_id: n examples.
        correct: (n,) whether the choice is right; False where the truth is not known.
        known: (n,) whether it is.
        stable_from: (n,) first depth from which the final choice stays on top.
        flips: (n,) how often the top changed from one depth to the next.
        ahead_from: (n,) first depth from which the truth is ahead of its competitor for good; -1 where it is not
            ahead in the end, or not known.
        lead_changes: (n,) how often the lead changed between these two; -1 where the truth is not known.
        n_layers: Depth at which the model ends.
    """

    example_id: tuple[str, ...]
    correct: Bool[np.ndarray, " n"]
    known: Bool[np.ndarray, " n"]
    stable_from: Int32[np.ndarray, " n"]
    flips: Int32[np.ndarray, " n"]
    ahead_from: Int32[np.ndarray, " n"]
    lead_changes: Int32[np.ndarray, " n"]
    n_layers: int

    def __post_init__(self) -> None:
        """Check that all fields speak of the same examples."""
        _need(len(self.example_id), correct=self.correct, known=self.known, stable_from=self.stable_from)
        _need(len(self.example_id), flips=self.flips, ahead_from=self.ahead_from, lead_changes=self.lead_changes)

    def rows(self, part: slice) -> "DecisionDepth":
        """Return the same for some of the examples."""
        return DecisionDepth(**_part_of(self, part))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per example; `ahead_from` and `lead_changes` are NA where they do not apply."""
        columns = {"example_id": list(self.example_id), "correct": _correct(self.correct, self.known)}
        columns |= {"stable_from": self.stable_from, "flips": self.flips}
        for name in ("ahead_from", "lead_changes"):
            values = pd.Series(getattr(self, name)).astype("Int32")
            columns[name] = values.mask(values < 0)
        return pd.DataFrame(columns)


@dataclass(frozen=True, slots=True)
class LensByChoice:
    """The lens by choice: logits and probabilities of the answers to multiple-choice questions, at every depth.

    Attributes:
        example_id: n examples.
        labels: n tuples of C labels.
        logits: (n, depth, C) at each depth: 0 is the embedding, the last is the model's end.
        probs: (n, depth, C) softmax of these over the answers.
        correct_idx: (n,) the right answer; -1 where it is not known.
        pred_idx: (n,) the answer the model gave.
        is_correct: (n,) whether it is right; False where the truth is not known.
        model_error: Largest |probability at the last depth - probability stored by the run|.
    """

    example_id: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    logits: Float32[np.ndarray, "n depth choice"]
    probs: Float32[np.ndarray, "n depth choice"]
    correct_idx: Int32[np.ndarray, " n"]
    pred_idx: Int32[np.ndarray, " n"]
    is_correct: Bool[np.ndarray, " n"]
    model_error: float

    def __post_init__(self) -> None:
        """Check that all fields speak of the same examples, depths and answers."""
        n, _, n_choices = self.probs.shape
        if self.logits.shape != self.probs.shape:
            raise ValueError(f"logits and probs need one shape, got {self.logits.shape} and {self.probs.shape}")
        _need(n, example_id=self.example_id, labels=self.labels, correct_idx=self.correct_idx)
        _need(n, pred_idx=self.pred_idx, is_correct=self.is_correct)
        if any(len(labels) != n_choices for labels in self.labels):
            raise ValueError(f"every example needs {n_choices} labels")

    @property
    def known(self) -> Bool[np.ndarray, " n"]:
        """Whether the truth is known."""
        known: np.ndarray = self.correct_idx >= 0
        return known

    @property
    def n_layers(self) -> int:
        """Number of layers; there is one depth more."""
        return int(self.probs.shape[1]) - 1

    def rows(self, part: slice) -> "LensByChoice":
        """Return the same for some of the examples."""
        return LensByChoice(**_part_of(self, part))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per (example, depth, choice)."""
        n, depths, n_choices = self.probs.shape
        each, choice = depths * n_choices, np.tile(np.arange(n_choices), n * depths)
        labels = np.repeat(np.asarray(self.labels, dtype=object).reshape(n, 1, n_choices), depths, axis=1)
        return pd.DataFrame(
            {
                "example_id": np.repeat(np.asarray(self.example_id, dtype=object), each),
                "depth": np.tile(np.repeat(np.arange(depths), n_choices), n),
                "choice": choice,
                "label": labels.ravel(),
                "logit": self.logits.ravel(),
                "prob": self.probs.ravel(),
                "is_true": _correct(np.repeat(self.correct_idx, each) == choice, np.repeat(self.known, each)),
                "is_predicted": np.repeat(self.pred_idx, each) == choice,
                "is_correct": _correct(np.repeat(self.is_correct, each), np.repeat(self.known, each)),
            }
        )


@dataclass(frozen=True, slots=True)
class Attribution:
    """What every part of a model adds to the lead of the target over its competitor, in logits.

    `embed + attn.sum(1) + mlp.sum(1) + remainder` is the model's logit difference, and where the model caps its
    logits, what that is before the cap: only this is a sum. The target is the true token, or the predicted one where
    the truth is not known.

    Attributes:
        example_id: n examples.
        correct: (n,) whether the model's choice is right; False where the truth is not known.
        known: (n,) whether it is.
        target_id: (n,) the target: a token, or of an encoder's run the choice.
        competitor_id: (n,) its competitor.
        embed: (n,) what the embedding adds.
        attn: (n, layer) what attention adds.
        mlp: (n, layer) what the MLP adds.
        remainder: (n,) what the biases of norms and unembedding add (of an encoder, and the bend of its head).
        heads: (n, layer, head) what each head adds, or None: with `attn_bias` they sum to `attn`.
        attn_bias: (n, layer) what the biases of attention's output add, or None.
        difference: (n,) the model's logit difference, as the run stored it where it did; before the cap, if any.
        sum_error: Largest |sum of all parts - difference|, logits.
        head_error: Largest |sum of the heads and the bias - attn|, logits; None without heads.
        logit_cap: What the model caps its logits with: x becomes cap * tanh(x / cap); None: it does not.
    """

    example_id: tuple[str, ...]
    correct: Bool[np.ndarray, " n"]
    known: Bool[np.ndarray, " n"]
    target_id: Int32[np.ndarray, " n"]
    competitor_id: Int32[np.ndarray, " n"]
    embed: Float32[np.ndarray, " n"]
    attn: Float32[np.ndarray, "n layer"]
    mlp: Float32[np.ndarray, "n layer"]
    remainder: Float32[np.ndarray, " n"]
    heads: Float32[np.ndarray, "n layer head"] | None
    attn_bias: Float32[np.ndarray, "n layer"] | None
    difference: Float32[np.ndarray, " n"]
    sum_error: float
    head_error: float | None = None
    logit_cap: float | None = None

    def __post_init__(self) -> None:
        """Check that all fields speak of the same examples and layers."""
        shape = self.attn.shape
        layered = [self.mlp, *((self.heads[:, :, 0],) if self.heads is not None else ())]
        layered += [self.attn_bias] if self.attn_bias is not None else []
        if any(values.shape != shape for values in layered) or (self.heads is None) != (self.attn_bias is None):
            raise ValueError(f"attn, mlp, heads and attn_bias need to begin with {shape}")
        names = ("correct", "known", "target_id", "competitor_id", "embed", "remainder", "difference")
        _need(shape[0], example_id=self.example_id, **{name: getattr(self, name) for name in names})

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return int(self.attn.shape[1])

    def running(self) -> Float32[np.ndarray, "n state"]:
        """Return the lead as it grows: the biases and the embedding, then attention and MLP of each layer."""
        writes = np.stack([self.attn, self.mlp], axis=2).reshape(len(self.embed), -1)
        start = (self.remainder + self.embed)[:, None]
        running: np.ndarray = np.concatenate([start, start + np.cumsum(writes, axis=1)], axis=1)
        return running

    def rows(self, part: slice) -> "Attribution":
        """Return the same for some of the examples."""
        return Attribution(**_part_of(self, part))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per (example, part): embed, attn, mlp, head, attn_bias and remainder.

        `layer` and `head` are -1 where they do not apply. Parts head and attn_bias split up attn: adding them to
        the others would count them twice.
        """
        n = len(self.embed)
        blocks: list[tuple[str, np.ndarray]] = [("embed", self.embed.reshape(n, 1, 1))]
        blocks += [("attn", self.attn[:, :, None]), ("mlp", self.mlp[:, :, None])]
        if self.heads is not None and self.attn_bias is not None:
            blocks += [("head", self.heads), ("attn_bias", self.attn_bias[:, :, None])]
        blocks.append(("remainder", self.remainder.reshape(n, 1, 1)))
        part, layer, head, values = [], [], [], []
        for name, block in blocks:
            at_layer, at_head = np.indices(block.shape[1:]).reshape(2, -1)
            part += [name] * len(at_layer)
            layer.append(np.where(name in {"embed", "remainder"}, -1, at_layer))
            head.append(np.where(name == "head", at_head, -1))
            values.append(block.reshape(n, -1))
        each = len(part)
        kinds = list(dict.fromkeys(part))
        return pd.DataFrame(
            {
                "example_id": np.repeat(np.asarray(self.example_id, dtype=object), each),
                "correct": _correct(np.repeat(self.correct, each), np.repeat(self.known, each)),
                "target_id": np.repeat(self.target_id, each),
                "competitor_id": np.repeat(self.competitor_id, each),
                "part": pd.Categorical(np.tile(np.asarray(part, dtype=object), n), categories=kinds),
                "layer": np.tile(np.concatenate(layer).astype(np.int16), n),
                "head": np.tile(np.concatenate(head).astype(np.int16), n),
                "logits": np.concatenate(values, axis=1).ravel(),
            }
        )
