"""What the analyses return: arrays with their shapes said, checked once, and a table form."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int32

_TRAJECTORIES = ("true_prob", "final_prob", "true_rank", "entropy", "kl_to_final")


@dataclass(frozen=True, slots=True)
class LensTrajectories:
    """A decision seen through the logit lens at every depth: 0 is the embedding, l the output of layer l.

    Attributes:
        example_id: (n,) the examples, those without a prediction left out.
        correct: (n,) whether the model's own prediction is right.
        top_id: (n, depth) most probable token.
        true_prob: (n, depth) probability of the actual next token.
        final_prob: (n, depth) probability of what the model predicts in the end.
        true_rank: (n, depth) rank of the actual token, 1 = top.
        entropy: (n, depth) in nats.
        kl_to_final: (n, depth) KL divergence of the final distribution from this one, nats; 0 at the end.
        model_error: Largest |probability by the lens at the last depth - probability stored by the run|.
    """

    example_id: tuple[str, ...]
    correct: Bool[np.ndarray, " n"]
    top_id: Int32[np.ndarray, "n depth"]
    true_prob: Float32[np.ndarray, "n depth"]
    final_prob: Float32[np.ndarray, "n depth"]
    true_rank: Int32[np.ndarray, "n depth"]
    entropy: Float32[np.ndarray, "n depth"]
    kl_to_final: Float32[np.ndarray, "n depth"]
    model_error: float

    def __post_init__(self) -> None:
        """Check that all fields speak of the same examples and depths."""
        shape = self.top_id.shape
        if any(getattr(self, name).shape != shape for name in _TRAJECTORIES):
            raise ValueError(f"all trajectories need the shape {shape}")
        if not len(self.example_id) == len(self.correct) == shape[0]:
            raise ValueError(f"example_id and correct need {shape[0]} entries")

    @property
    def n_layers(self) -> int:
        """Number of layers; there is one depth more."""
        return int(self.top_id.shape[1]) - 1

    def to_frame(self) -> pd.DataFrame:
        """Return one row per (example, depth)."""
        n, depths = self.top_id.shape
        columns = {
            "example_id": np.repeat(np.asarray(self.example_id, dtype=object), depths),
            "depth": np.tile(np.arange(depths), n),
            "correct": np.repeat(self.correct, depths),
            "top_id": self.top_id.ravel(),
        }
        return pd.DataFrame(columns | {name: getattr(self, name).ravel() for name in _TRAJECTORIES})


@dataclass(frozen=True, slots=True)
class DecisionDepth:
    """When each decision was made.

    Attributes:
        example_id: (n,) the examples.
        correct: (n,) whether the prediction is right.
        stable_from: (n,) first depth from which the final prediction stays on top; 0 is the embedding.
        flips: (n,) how often the top token changed from one depth to the next.
        n_layers: Depth at which the model ends.
    """

    example_id: tuple[str, ...]
    correct: Bool[np.ndarray, " n"]
    stable_from: Int32[np.ndarray, " n"]
    flips: Int32[np.ndarray, " n"]
    n_layers: int

    def to_frame(self) -> pd.DataFrame:
        """Return one row per example."""
        return pd.DataFrame(
            {
                "example_id": list(self.example_id),
                "correct": self.correct,
                "stable_from": self.stable_from,
                "flips": self.flips,
            }
        )
