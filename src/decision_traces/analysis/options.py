"""The options of every analysis: flags of its command, and arguments in Python. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from decision_traces.tasks.decisions import Kind


@dataclass(frozen=True, slots=True)
class LensOptions:
    """Read a run through the lens: what the model would say after each layer, and when its decisions stand.

    The run must hold `hidden` (or `resid`, for decoders). Decoders are read through their unembedding, masked-language
    models at their masked tokens through their whole head, multiple-choice encoders through their classification head.

    Attributes:
        model_path: Folder of the model, if it has moved since the run.
        top_k: How many of the most probable tokens to keep at every layer.
        of: Decoders: the decisions that tables and pictures are about: next, the text's last token; after, what comes
            after the text, whose target is what the model predicts itself; answer. Default: the run's own.
        all_positions: Decoders: look at every position for the page (`decision-traces view`), not only at those of the
            decisions.
        device: auto, cpu, cuda, cuda:1, mps.
        trust_remote_code: Run Python that the model brings along; only for models of people you trust.
    """

    model_path: Path | None = None
    top_k: int = 5
    of: Kind | None = None
    all_positions: bool = False
    device: str = "auto"
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class AttributionOptions:
    """Split the lead of the true token (or choice) over its competitor into what each layer, MLP and head added.

    A decoder's run must hold `resid`, and for single heads `head_out`, or `attn` and `qkv`, too. An encoder is run once
    more.

    Attributes:
        model_path: Folder of the model, if it has moved since the run.
        top_k: How many of the heads that push most to show.
        of: Decoders: the decisions that tables and pictures are about: next, the text's last token; after, what comes
            after the text: what the model predicts, against its competitor; answer. Default: the run's own.
        all_positions: Decoders: split every position for the page (`decision-traces view`), not only those of the
            decisions.
        device: auto, cpu, cuda, cuda:1, mps.
        trust_remote_code: Run Python that the model brings along; only for models of people you trust.
    """

    model_path: Path | None = None
    top_k: int = 8
    of: Kind | None = None
    all_positions: bool = False
    device: str = "auto"
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """Measure what every attention head looks at: entropy, distance, previous, first, same and induction mass.

    The run must hold attention.

    Attributes:
        array: Which attention; the first that the run has, where left out.
    """

    array: Literal["dec_self_attn", "enc_self_attn", "enc_mc_attn"] | None = None


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """Compare right with wrong answers: certainty, attention, decision depth, a probe per layer, calibration.

    Attributes:
        by: Compare by this column of tokens.parquet instead: its classes (two with one another, of more each with the
            rest), or how all that goes with its numbers.
        seed: Of bootstrap draws, folds, subsample and shuffles.
        n_boot: Bootstrap draws.
        folds: Of the probe's cross-validation.
        max_examples: Let the probe use no more examples than these.
        model_path: Where the model is now, for the decision depth.
        trust_remote_code: Run Python that the model brings along; only for models of people you trust.
    """

    by: str | None = None
    seed: int = 0
    n_boot: int = 2000
    folds: int = 5
    max_examples: int | None = None
    model_path: Path | None = None
    trust_remote_code: bool = False
