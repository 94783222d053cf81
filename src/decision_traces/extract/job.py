"""What one extraction is: what the user asked for, and what is known before its first forward pass."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import pyarrow as pa

from decision_traces.data.example import Example
from decision_traces.data.registry import DataSource, load_examples
from decision_traces.extract.engine import NextPosition, Workflow
from decision_traces.extract.selection import Selection
from decision_traces.format.arrays import Prefix, StorageDtype, Task
from decision_traces.model.load import LoadedModel, ModelSource
from decision_traces.model.structure import Anatomy
from decision_traces.store import RunLayout
from decision_traces.tokens import Encoding, SpecialTokens, TokenBatch, encode
from decision_traces.tracing.self_check.certificate import Certificate


@runtime_checkable
class JobWorkflow(Workflow, Protocol):
    """A workflow as a job needs it: the loop's part, and the figures for the meta."""

    def conventions(self) -> Mapping[str, str]:
        """Return what the outcome columns mean, for the meta."""

    def figures(self, tokens: pa.Table) -> Mapping[str, Any]:
        """Return accuracy figures from the finished `tokens.parquet`."""


@dataclass(frozen=True, slots=True)
class Material:
    """What a workflow is made from.

    Attributes:
        examples: The examples.
        encodings: They, tokenised; with choices, each choice of each.
        loaded: The model.
        with_target: Whether a decoder reads a target of its own, as in an encoder-decoder.
        whole_logits: Whether the logits of all positions are recorded, and must be computed.
        cut: Cuts other texts, at most so many at once, into batches as the run's own are.
    """

    examples: Sequence[Example]
    encodings: Sequence[Encoding]
    loaded: LoadedModel
    with_target: bool
    whole_logits: bool
    cut: Callable[[Sequence[Encoding], int], Iterator[TokenBatch]]


WorkflowFactory = Callable[[Material], JobWorkflow]


Encoder = Callable[[LoadedModel, Sequence[Example], int | None], list[Encoding]]
"""Model with tokenizer, examples, most tokens → encodings."""


def encode_texts(
    loaded: LoadedModel, examples: Sequence[Example], limit: int | None, special: SpecialTokens = "auto"
) -> list[Encoding]:
    """Tokenise the text of each example; see `tokens.encode`."""
    return encode(loaded.tokenizer, [e.text for e in examples], limit, special)


def last_known(encoding: Encoding) -> int:
    """Return the last position whose next token is in the text; -1 where there is none."""
    return max(-1, encoding.main.n_tokens - 2)


def last_token(encoding: Encoding) -> int:
    """Return the position of the last token."""
    return encoding.main.n_tokens - 1


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The options every extraction has; see `ExtractConfig` for their meaning."""

    selection: Selection
    dtype: StorageDtype
    max_seq_len: int | Literal["auto"]
    batch_size: int
    block_mb: int
    store_unembed: bool
    out_dir: Path | None
    overwrite: bool
    resume: bool
    seed: int
    uncertified: bool
    anonymous: bool
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One extraction.

    Attributes:
        objective: Goes into the meta: next_token, csqa_choice, multiple_choice.
        kind: Last part of the run's name.
        model, data, options: What the user asked for.
        settings: All flags as JSON, for the meta.
        decisive: Those of the settings that decide the workflow's numbers; a resumed run must have the same.
        workflow: Makes the workflow once data and model are there.
        task: What the model's head must do.
        prefixes: Which of the schema's arrays are filled.
        next_position: Where an example's prediction is made; None where there is no one such position.
        read: Gives the examples; `text` is what a row is about, `fields` become columns.
        encode: Tokenises them; with choices, to as many encodings for each example.
        cuts: Whether a text that is too long may be cut; else it is refused.
        n_target: T of the decoder of an encoder-decoder; None fits the longest target.
        n_tables: Parquet files of the run.
    """

    objective: str
    kind: str
    model: ModelSource
    data: DataSource
    options: JobOptions
    settings: Mapping[str, Any]
    decisive: tuple[str, ...]
    workflow: WorkflowFactory
    task: Task = "causal"
    prefixes: tuple[Prefix, ...] = ("dec",)
    next_position: NextPosition | None = last_known
    read: Callable[[DataSource], list[Example]] = load_examples
    encode: Encoder = encode_texts
    cuts: bool = True
    n_target: int | None = None
    n_tables: int = 1

    @property
    def arch(self) -> Literal["dec", "enc", "encdec"]:
        """Goes into the meta."""
        return "encdec" if len(self.prefixes) > 1 else "dec" if self.prefixes == ("dec",) else "enc"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything known before the first forward pass of the run itself; with choices, an encoding for each."""

    examples: list[Example]
    encodings: list[Encoding]
    loaded: LoadedModel
    anatomy: Anatomy
    certificate: Certificate
    pad: int
    layout: RunLayout
    missing: Mapping[str, str]
    lineage: Mapping[str, Any] | None = None

    def encodings_of(self, rows: Iterable[int]) -> Iterator[Encoding]:
        """Yield the encodings of some examples, with choices of each of their choices."""
        choices = self.layout.dims.n_choices
        for row in rows:
            yield from self.encodings[row * choices : (row + 1) * choices]


def as_settings(config: Any) -> dict[str, Any]:
    """Return a command's flags as JSON values, but for the command line itself."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in {"command", "plan"}}
    return {
        name: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for name, v in values.items()
    }
