"""What one extraction is: `Job` says what is asked for, `Prepared` what is known before the first forward pass.

The flags are an `ExtractConfig`; a kind of decision makes a `Job` of it with a `Workflow` of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import pyarrow as pa

from decision_traces.data.example import Example
from decision_traces.data.registry import DataSource, load_examples
from decision_traces.errors import UsageError
from decision_traces.extract.batching import batch_cost, token_budget
from decision_traces.extract.config import ExtractConfig
from decision_traces.extract.selection import Selection
from decision_traces.format.arrays import ModelTask
from decision_traces.format.stages import VOCAB
from decision_traces.model.load import LoadedModel, ModelSource, load_model
from decision_traces.model.structure import ModuleStructure
from decision_traces.store import RunLayout
from decision_traces.tasks import Task
from decision_traces.tokens import Encoding, SpecialTokens, TokenBatch, batches, encode
from decision_traces.tracing.self_check.certificate import Certificate

NextPosition = Callable[[Encoding], int]
"""Encoding → the position where its prediction is made."""


@runtime_checkable
class Workflow(Protocol):
    """What a kind of decision adds to the loop: its forward pass with what it keeps of the outcome, and its tables."""

    def forward(self, loaded: LoadedModel, batch: TokenBatch, first_row: int) -> Callable[[], None] | None:
        """Run the model on a batch, keeping the outcome of each row.

        Rows count from `first_row` of the run; with choices, each choice of each example is a row. A batch that was
        too large for the memory comes again in parts.

        Returns:
            What else is to be computed of these rows once nothing is recorded any more, if anything.
        """

    def tables(self, rows: range) -> Mapping[str, pa.Table]:
        """Return the rows of each table that belong to these examples, and forget them."""

    def conventions(self) -> Mapping[str, str]:
        """Return what the outcome columns mean, for the meta."""

    def figures(self, tokens: pa.Table) -> Mapping[str, Any]:
        """Return accuracy figures from the finished `tokens.parquet`."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything known before the first forward pass of the run itself.

    Attributes:
        examples: The examples.
        encodings: They, tokenised; with choices, each choice of each.
        loaded, structure: The model and its module structure.
        certificate: What it showed of itself.
        pad: Id that fills padding.
        layout: What the run will hold.
        batch_size: Most rows of a batch.
        missing: Array to the reason why the model cannot give it.
        lineage: What is known of the checkpoint's training.
    """

    examples: list[Example]
    encodings: list[Encoding]
    loaded: LoadedModel
    structure: ModuleStructure
    certificate: Certificate
    pad: int
    layout: RunLayout
    batch_size: int
    missing: Mapping[str, str]
    lineage: Mapping[str, Any] | None = None

    @property
    def with_target(self) -> bool:
        """Whether a decoder reads a target of its own, as in an encoder-decoder."""
        return len(self.layout.sides) > 1

    @property
    def whole_logits(self) -> bool:
        """Whether the logits of all positions are captured, and must be computed."""
        return any(VOCAB in spec.axes for spec in self.layout.specs)

    def encodings_of(self, rows: Iterable[int]) -> Iterator[Encoding]:
        """Yield the encodings of some examples, with choices of each of their choices."""
        choices = self.layout.dims.n_choices
        for row in rows:
            yield from self.encodings[row * choices : (row + 1) * choices]

    def batches(self, encodings: Sequence[Encoding], most: int | None = None) -> Iterator[TokenBatch]:
        """Cut texts into batches as the model's device computes them best.

        Args:
            encodings: The run's own, or others.
            most: Rows of a batch at most, where `batch_size` is not less; by default those of `batch_size` examples.
        """
        device, loaded = self.loaded.device, self.loaded
        rows = self.batch_size * self.layout.dims.n_choices if most is None else min(most, self.batch_size)
        return batches(
            encodings,
            rows,
            token_budget(device),
            self.pad,
            one_length=not self.structure.pads,
            switch=loaded.switch,
            batch_cost=batch_cost(device),
        )


WorkflowFactory = Callable[[Prepared], Workflow]
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
class Job:
    """One extraction.

    Attributes:
        task: Kind of decision.
        model, data: What the user asked for.
        config: The flags.
        decisive: Those of the flags that decide the workflow's numbers; a resumed run must have the same.
        workflow: Makes the workflow once data and model are there.
        next_position: Where an example's prediction is made; None where there is no one such position.
        read: Gives the examples; `text` is what a row is about, `fields` become columns.
        encode: Tokenises them; with choices, to as many encodings for each example.
        cuts: Whether a text that is too long may be cut; else it is refused.
        n_target: T of the decoder of an encoder-decoder; None fits the longest target.
        n_tables: Parquet files of the run.
        load: Gives the model.
        selection: What is to be kept.
    """

    task: Task
    model: ModelSource
    data: DataSource
    config: ExtractConfig
    decisive: tuple[str, ...]
    workflow: WorkflowFactory
    next_position: NextPosition | None = last_known
    read: Callable[[DataSource], list[Example]] = load_examples
    encode: Encoder = encode_texts
    cuts: bool = True
    n_target: int | None = None
    n_tables: int = 1
    load: Callable[[ModelSource, ModelTask], LoadedModel] = load_model
    selection: Selection = field(init=False)

    def __post_init__(self) -> None:
        """Resolve the flags to values, and refuse what can be refused before anything is loaded.

        Raises:
            UsageError: A flag that no model, or no run of this kind, can follow.
        """
        self.config.check()
        object.__setattr__(self, "selection", self.config.selection())
        if self.selection.positions == "next" and self.next_position is None:
            raise UsageError(
                "--positions next: these runs have no one position of their prediction. Give last, or numbers."
            )

    @property
    def arch(self) -> Literal["dec", "enc", "encdec"]:
        """Goes into the meta."""
        return "encdec" if len(self.task.prefixes) > 1 else "dec" if self.task.prefixes == ("dec",) else "enc"
