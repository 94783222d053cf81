"""What a kind of decision is: everything that the rest of the house may ask about it, in one record.

`Task` is about runs and their tables, and needs no torch. What runs a model for a kind (its examples as tokens, its
forward pass) is a module of `extract`, which makes the `Job` that names the `Task`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from decision_traces.checks import CheckResult
from decision_traces.format.arrays import ModelTask, Positions
from decision_traces.format.columns import TOKEN_COLUMNS, Column
from decision_traces.format.lists import Spans
from decision_traces.format.stages import Prefix
from decision_traces.tasks.decisions import Decisions, Kind
from decision_traces.tasks.figures import Figure

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True, slots=True)
class TokenTable:
    """What a kind's own checks get of a run.

    Attributes:
        table: tokens.parquet.
        spans: Where each example's tokens lie.
        usable: Columns that are there with the right type.
        vocab_size: Tokens of the vocabulary, or None where unknown.
        input_ids: Column of the tokens that the predicting side read.
    """

    table: pa.Table
    spans: Spans
    usable: set[str]
    vocab_size: int | None
    input_ids: str


@dataclass(frozen=True, slots=True)
class Reading:
    """How decisions of one kind are read from the table.

    Attributes:
        needs: The column without which there are none; where it holds numbers, they are positions, -1 for no decision.
        columns: What is read.
        read: Makes decisions of these columns; it gets the example_id too.
        kept: In which runs its position is kept: those of all positions, of the next, the last, or some by number.
        none: Why a run may have no such decision.
    """

    needs: str
    columns: tuple[str, ...]
    read: Callable[[pa.Table], Decisions]
    kept: frozenset[str] = frozenset({"all", "next", "last", "some"})
    none: str = "its texts are too short"

    def is_kept(self, positions: Positions) -> bool:
        """Return whether a run that keeps these positions keeps that of the decision."""
        return (positions if isinstance(positions, str) else "some") in self.kept


@dataclass(frozen=True, slots=True)
class Verdict:
    """The column that holds whether the answer of an example is right, and how sure the model was.

    Attributes:
        column: True, False, or null where the truth is not known.
        columns: What else `figures` reads.
        figures: Table → probability of the answer given, entropy (nats), margin (logits); NaN where there is none.
    """

    column: str
    columns: tuple[str, ...]
    figures: "Callable[[pd.DataFrame], Sequence[np.ndarray]]"


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence on what analyses of a run leave out.

    Attributes:
        columns: What is looked at; a run without the first needs no note.
        say: Table → the sentence, None where nothing is left out.
    """

    columns: tuple[str, ...]
    say: Callable[[pa.Table], str | None]


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the page names it."""

    id: int
    text: str
    prob: float | None


@dataclass(frozen=True, slots=True)
class Said:
    """What a model predicted at one position.

    Attributes:
        true, pred: The true token, None where it is not known; the predicted one.
        entropy, margin, rank: Entropy of the distribution, nats; best minus second logit; rank of the true token.
        top: The most probable tokens, best first.
    """

    true: Token | None
    pred: Token | None
    entropy: float | None
    margin: float | None
    rank: int | None
    top: tuple[Token | None, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One decision of one example, for the page.

    Attributes:
        pos: Its position, None where it is made at no one position.
        correct: Whether it is right; None where that is not known.
        known: Whether the truth is.
        said: What was predicted; None where it is between choices (see `Option`).
    """

    pos: int | None
    correct: bool | None
    known: bool
    said: Said | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """One of the choices of a question, for the page; `more`: further scores of it by name."""

    label: str
    text: str
    id: int
    logit: float
    prob: float
    right: bool
    given: bool
    more: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Words:
    """What the page calls things.

    Attributes:
        tokens: Title of the token panel.
        where: The word before the token at which a prediction is made: after, for.
        truth: The words before the token that is true there.
        no_lens: Why the lens is not drawn, where a command computes it nevertheless.
    """

    tokens: str = "Tokens"
    where: str = "after"
    truth: str = "the text goes on"
    no_lens: str = ""


@dataclass(frozen=True, slots=True)
class ListRow:
    """What the example list shows of an example, by column.

    Attributes:
        text: What it is about.
        from_end: Whether the end of that is shown, where the prediction is made.
        target, said: Columns of the true and of the predicted answer; `{kind}` is the run's first kind of decision.
        search: What is searched in.
    """

    text: str = "text"
    from_end: bool = True
    target: str = ""
    said: str = ""
    search: str = "text"

    def columns(self, kinds: Sequence[Kind]) -> dict[str, str]:
        """Return the columns of `target` and `said`, by these names, in a run that has these decisions."""
        kind = next(iter(kinds), "")
        named = {"target": self.target.format(kind=kind), "said": self.said.format(kind=kind)}
        return {name: column for name, column in named.items() if column}


def no_checks(rows: TokenTable) -> Iterator[CheckResult]:
    """Check nothing: the kind has no columns of its own."""
    return iter(())


def no_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return no lines."""
    return []


def no_predictions(values: Mapping[str, Any], kinds: Sequence[Kind]) -> list[Prediction]:
    """Return none."""
    return []


def no_options(values: Mapping[str, Any]) -> list[Option] | None:
    """Return None: there are no choices."""
    return None


def no_figures(table: pa.Table, kinds: Sequence[Kind]) -> list[Figure]:
    """Return none."""
    return []


def own_text(values: Mapping[str, Any], choice: int) -> tuple[str, ...]:
    """Return the text that the offsets of tokens count in."""
    return (str(values.get("text") or ""),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One kind of decision.

    What is left out is that of runs which decide nothing. Functions about one example take its row of tokens.parquet
    by column.

    Attributes:
        objective: Its name in the meta.
        run_word: Last part of a run's name.
        model: What the model's head must do.
        prefixes: What the names of its arrays begin with.
        columns: Of tokens.parquet; the data set's own follow.
        known_by: Columns by which a run is taken for one of this kind whose meta names none.
        together: Lists of a row that are of one length: those that must be there where any of them is, and others.
        decided_at: Column with the position of each example's own decision.
        positions: Columns of positions in a text, -1 for none.
        position_lists: Columns of lists of such positions.
        may_hold_nulls: Columns whose lists may.
        check: Checks the columns of the kind against one another and the tokens.
        headline: Lines about the meta's figures, printed after an extraction.
        decisions: Decisions that are made once an example, at one position of a decoder, the run's own first.
        many: Decisions that an example may have several of.
        verdict: Which column holds whether an answer is right.
        note: What analyses of its decisions leave out.
        choices: Whether it is decided between choices: "tokens", by what comes after a prompt, or "sequences", each of
            which the model reads by itself, so that every array has an axis of choices.
        fills_gaps: Whether tokens are predicted where they stand; else each is at the one before.
        linear_head: Whether the logits are a sum of what the parts of the model wrote.
        listed_from: Columns that `listed` reads, for these kinds of decisions.
        listed: Figures of the example list.
        list_row: What the list shows of an example.
        predictions: Decisions of an example, its own first, for the kinds of decisions that its run has.
        options: The choices of an example; None without.
        texts: Texts of an example (and choice) that the offsets of tokens count in.
        words: What the page calls things.
    """

    objective: str
    run_word: str
    model: ModelTask
    prefixes: tuple[Prefix, ...]
    columns: tuple[Column, ...] = TOKEN_COLUMNS
    known_by: tuple[str, ...] = ()
    together: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    decided_at: str | None = None
    positions: tuple[str, ...] = ()
    position_lists: tuple[str, ...] = ()
    may_hold_nulls: frozenset[str] = frozenset()
    check: Callable[[TokenTable], Iterator[CheckResult]] = no_checks
    headline: Callable[[Mapping[str, Any]], list[str]] = no_lines
    decisions: Mapping[Kind, Reading] = field(default_factory=dict)
    many: Reading | None = None
    verdict: Verdict | None = None
    note: Note | None = None
    choices: Literal["tokens", "sequences"] | None = None
    fills_gaps: bool = False
    linear_head: bool = True
    listed_from: Callable[[Sequence[Kind]], tuple[str, ...]] = lambda kinds: ()
    listed: Callable[[pa.Table, Sequence[Kind]], list[Figure]] = no_figures
    list_row: ListRow = ListRow()
    predictions: Callable[[Mapping[str, Any], Sequence[Kind]], list[Prediction]] = no_predictions
    options: Callable[[Mapping[str, Any]], list[Option] | None] = no_options
    texts: Callable[[Mapping[str, Any], int], tuple[str, ...]] = own_text
    words: Words = Words()

    @property
    def reads_choices(self) -> bool:
        """Whether the model reads each choice by itself."""
        return self.choices == "sequences"

    @property
    def readings(self) -> tuple[Reading, ...]:
        """All ways in which its decisions are read."""
        return (*self.decisions.values(), *(() if self.many is None else (self.many,)))
