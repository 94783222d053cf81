"""What codecs make of real activations: size and speed beside the stored frames that runs are written in.

    OMP_NUM_THREADS=1 python -m benchmarks.codecs --model_path FOLDER --data_dir FOLDER [--texts 6] [--max_seq_len 256]

A chunk is one example at one layer with all its room, as in a run: attention (heads, T, T) and hidden states
(T, d_model) in float16. Sizes are shares of the numbers of the tokens alone (of attention: the triangle), speeds are
these numbers over the time on one core, the best of three rounds.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numcodecs
import numpy as np
import torch
import tyro
from numcodecs import LZ4, Blosc, Zstd
from rich.console import Console
from rich.table import Table

from decision_traces.data.registry import DataSource, load_examples
from decision_traces.model.load import ModelSource, load_decoder
from decision_traces.store.shards.frames import FrameMaker
from decision_traces.tokens import encode

_FEWEST_TOKENS: Final = 60
_EVERY: Final = 6  # layers
_ROUNDS: Final = 3

Encode = Callable[[np.ndarray], Any]
"""A padded chunk to its bytes."""


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    model_path: Path
    data_dir: Path
    texts: int = 6
    max_seq_len: int = 256


@dataclass(frozen=True)
class Chunk:
    """One example at one layer: its tokens, and the chunk with all its room."""

    tokens: np.ndarray
    padded: np.ndarray


def chunks(settings: Settings) -> dict[str, list[Chunk]]:
    """Return the attention and hidden states of a few texts, every sixth layer."""
    loaded = load_decoder(replace(ModelSource("codecs", settings.model_path), attention="eager"))
    examples = load_examples(DataSource("wikitext2", "validation", settings.data_dir, limit=20 * settings.texts))
    encodings = encode(loaded.tokenizer, [e.text for e in examples], settings.max_seq_len)
    found: dict[str, list[Chunk]] = {"attention": [], "hidden states": []}
    for encoding in [e for e in encodings if e.n_tokens > _FEWEST_TOKENS][: settings.texts]:
        ids = torch.from_numpy(encoding.ids.astype(np.int64))[None]
        with torch.inference_mode():
            out = loaded.model(ids, output_attentions=True, output_hidden_states=True)
        for probs in out.attentions[::_EVERY]:
            heads = probs.shape[1]
            found["attention"].append(_chunk(probs[0], (heads, settings.max_seq_len, settings.max_seq_len)))
        for state in out.hidden_states[::_EVERY]:
            found["hidden states"].append(_chunk(state[0], (settings.max_seq_len, state.shape[-1])))
    return found


def _chunk(value: torch.Tensor, room: tuple[int, ...]) -> Chunk:
    tokens = value.to(torch.float16).numpy()
    padded = np.zeros(room, np.float16)
    padded[tuple(slice(n) for n in tokens.shape)] = tokens
    return Chunk(tokens, padded)


def codecs() -> dict[str, Encode]:
    """Return the codecs by name."""
    numcodecs.blosc.use_threads = False
    shuffled = {f"Blosc {name} {level}, bytes shuffled": Blosc(name, level, Blosc.SHUFFLE) for name, level in
                (("lz4", 1), ("zstd", 1))}  # fmt: skip
    plain = {f"Zstandard {level}": Zstd(level=level) for level in (-50, -5, 1, 3)}
    return {name: codec.encode for name, codec in {**plain, "LZ4": LZ4(1), **shuffled}.items()}


def measure(found: list[Chunk], encode_chunk: Callable[[Chunk], Any]) -> tuple[int, float]:
    """Return the bytes of all chunks, and the seconds that they take."""
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        size = sum(memoryview(encode_chunk(chunk)).nbytes for chunk in found)
        best = min(best, time.perf_counter() - start)
    return size, best


def _token_bytes(tokens: np.ndarray, *, causal: bool) -> int:
    """Return the bytes of what is not zero by necessity."""
    if not causal:
        return tokens.nbytes
    heads, n, _ = tokens.shape
    return heads * n * (n + 1) // 2 * tokens.itemsize


def figures(name: str, found: list[Chunk]) -> Mapping[str, tuple[float, float]]:
    """Return for every codec the share of the tokens' bytes that is left, and GB/s of these bytes."""
    causal = name == "attention"
    exact = sum(_token_bytes(chunk.tokens, causal=causal) for chunk in found)
    maker = FrameMaker(found[0].padded.shape, triangular=causal)
    ways: dict[str, Callable[[Chunk], Any]] = {"stored frames": lambda c: maker.frame(c.tokens)}
    ways |= {name: lambda c, codec=codec: codec(c.padded) for name, codec in codecs().items()}
    measured = {way: measure(found, run) for way, run in ways.items()}
    return {way: (size / exact, exact / seconds / 1e9) for way, (size, seconds) in measured.items()}


def main() -> None:
    """Measure and print."""
    settings = tyro.cli(Settings, use_underscores=True)
    found = {name: figures(name, part) for name, part in chunks(settings).items()}
    table = Table(title=f"{settings.model_path.name}, {settings.texts} texts, T = {settings.max_seq_len}")
    table.add_column("")
    for name in found:
        table.add_column(f"{name}: size", justify="right")
        table.add_column("GB/s", justify="right")
    for way in next(iter(found.values())):
        cells = [f"{figure:.2f}" for name in found for figure in found[name][way]]
        table.add_row(way, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
