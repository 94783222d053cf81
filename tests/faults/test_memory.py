"""A batch that the memory does not hold is halved, said once, with the same numbers; one row too many is an error."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from decision_traces import TraceStore
from decision_traces.errors import OutOfMemory
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.extract.progress import Silent
from decision_traces.store.validate.run import failures, validate_run

ERRORS = {
    "of torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "of the CPU's allocator": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "of Python": MemoryError(),
}
LONGEST = 30
"""Tokens of the longest text."""
NUMBERS = (
    *("next_true_prob", "next_pred_prob", "next_entropy", "next_margin"),
    *("after_pred_prob", "after_entropy", "after_margin"),
)


class SmallMemory(Silent):
    """A memory that holds so many rows of the longest text, from the beginning of the run on, and what was said.

    Attributes:
        refused, held: (rows, tokens) of every batch that did not fit, and of every one that did.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most_rows: int, error: Exception) -> None:
        self.said: list[str] = []
        self.refused: list[tuple[int, int]] = []
        self.held: list[tuple[int, int]] = []
        self.counted = [0, 0]
        self._begun, forward = False, GPT2LMHeadModel.forward

        def within(model: GPT2LMHeadModel, input_ids: torch.Tensor, **more: object) -> object:
            rows, tokens = input_ids.shape
            if self._begun and rows * tokens > most_rows * LONGEST:
                self.refused.append((rows, tokens))
                raise error
            self.held += [(rows, tokens)] if self._begun else []
            return forward(model, input_ids, **more)

        monkeypatch.setattr(GPT2LMHeadModel, "forward", within)

    def start(self, n_examples: int, n_tokens: int) -> None:
        self._begun, self.todo = True, [n_examples, n_tokens]

    def say(self, message: str) -> None:
        if self._begun:
            self.said.append(message)

    def advance(self, n_examples: int, n_tokens: int) -> None:
        self.counted = [self.counted[0] + n_examples, self.counted[1] + n_tokens]


@pytest.fixture(scope="module")
def asked(tiny_folder, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., NextTokenConfig]:
    """Ask for a run of 21 ragged texts in batches of 8."""
    place = tmp_path_factory.mktemp("memory")
    (place / "lines.txt").write_text("".join(f"{'abc ' * (1 + 5 * i % 7)}{i}\n" for i in range(21)))
    options = {"dtype": "float32", "batch_size": 8, "all_positions": True, "capture": ("attn", "hidden", "resid")}
    files = {"model_path": tiny_folder("gpt2"), "text_file": place / "lines.txt"}
    return lambda run: NextTokenConfig(model="tiny", out_dir=run, **files, **options)


@pytest.fixture(scope="module")
def whole(asked, tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    """The run with memory enough."""
    return TraceStore(extract_next_token(asked(tmp_path_factory.mktemp("whole") / "run")))


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether numbers that were computed in batches of other shapes are the same but for float32's rounding."""
    scale = np.abs(one) + np.median(np.abs(one[one != 0]))
    return bool((np.abs(one - other) <= 1e-5 * scale).all())


@pytest.mark.parametrize(("kind", "most_rows"), [*((kind, 1) for kind in ERRORS), ("of torch", 3)])
def test_a_batch_too_large_is_halved_and_the_numbers_stay(
    kind: str, most_rows: int, whole: TraceStore, asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SmallMemory(monkeypatch, most_rows, ERRORS[kind])
    found = TraceStore(extract_next_token(asked(tmp_path / "run"), memory))
    assert memory.refused and sum(rows for rows, _ in memory.held) == 21
    assert max(tokens for _, tokens in memory.held) == LONGEST
    assert len(memory.said) == 1 and "memory" in memory.said[0].lower()
    assert memory.counted == memory.todo
    assert failures(validate_run(found.run_dir)) == []
    for name in whole.arrays():
        one, other = (store.to_xarray(name).to_numpy() for store in (whole, found))
        assert same(one, other), name
    tables = [store.tokens for store in (whole, found)]
    for column in tables[0].columns:
        if column not in {*NUMBERS, "next_topk_probs", "after_topk_probs"}:
            assert [repr(v) for v in tables[0][column]] == [repr(v) for v in tables[1][column]], column
    for column in NUMBERS:
        assert same(*(table[column].to_numpy() for table in tables)), column


def test_a_size_that_was_refused_is_not_tried_again(asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SmallMemory(monkeypatch, 4, ERRORS["of torch"])
    extract_next_token(asked(tmp_path / "run"), memory)
    assert len(memory.refused) == 1 and memory.refused[0][0] > 4


@pytest.mark.parametrize("kind", ERRORS)
def test_a_memory_that_holds_not_one_row_is_one_error(
    kind: str, asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SmallMemory(monkeypatch, 0, ERRORS[kind])
    with pytest.raises(OutOfMemory) as raised:
        extract_next_token(asked(tmp_path / "run"), memory)
    said = str(raised.value)
    assert re.match(r"Not enough memory \(.+\)\. Use less with --max_seq_len", said)
    assert "\n" not in said and said.endswith("nothing is left behind.")
    assert memory.refused[-1][0] == 1
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_of_memory_is_not_retried(asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SmallMemory(monkeypatch, 3, RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        extract_next_token(asked(tmp_path / "run"), memory)
    assert len(memory.refused) == 1
    assert not (tmp_path / "run").exists()
