"""Random extractions for the fuzz: a tiny model, a file of odd texts and flags, all from one seed."""

import csv
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

LONG = 10 << 20
"""Characters of the longest line; a tenth of it in the cases of every session, for their minutes' sake."""
IN_CI = 100
"""Cases of every session."""

_GROUPED = ("llama", "qwen2", "mistral", "gemma2", "olmo2", "cohere")
_DECODERS = (*_GROUPED, "gpt2", "gpt_neox", "opt", "opt_post_norm", "phi", "gptj", "falcon", "bloom")
_ENCODERS = ("bert", "roberta", "distilbert", "albert", "electra", "deberta_v3", "mpnet", "modernbert")
_ENCODER_DECODERS = ("bart", "t5")
_CAPTURES = ("attn", "qkv", "hidden", "resid", "attn_out", "mlp_out", "head_out", "mlp_act", "logits")

_TEXTS: tuple[Callable[[random.Random], str], ...] = (
    lambda _: "",
    lambda _: " ",
    lambda _: "a",
    lambda _: "\t \u00a0\u3000",
    lambda r: "a plain line of text " * r.randrange(1, 6),
    lambda r: "\N{GRINNING FACE}\N{ZERO WIDTH JOINER}\N{FIRE}\N{VARIATION SELECTOR-16}" * r.randrange(1, 5),
    lambda _: "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202eabc\u202c",
    lambda _: "nul \0 in it\0",
    lambda _: "e\u0301\u0302 \ufeff \ufffd \x1b[31m \x7f",
    lambda r: "<s><e>" * r.randrange(1, 4) + "<m>",
    lambda r: "".join(chr(r.randrange(1, 0xD800)) for _ in range(r.randrange(1, 60))),
    lambda r: "x" * r.randrange(1, 400),
    lambda _: '<script>alert("1")</script> {"text": 1},,"',
)
_BROKEN: tuple[tuple[str, bytes], ...] = (
    ("txt", b""),
    ("txt", b"\n\n\n"),
    ("txt", b"fine\n\xff\xfe\x80 not UTF-8\n"),
    ("jsonl", b'{"text": "fine"}\n{"text": \n'),
    ("jsonl", b'{"text": "fine"}\n["no object"]\n'),
    ("jsonl", b'{"words": "no text"}\n'),
    ("jsonl", b'{"text": 5}\n{"text": null}\n'),
    ("csv", b"words\nno text\n"),
    ("csv", b'text\n"never closed\n'),
    ("parquet", b"PAR1 no more of it"),
    ("pdf", b"%PDF"),
)


_REFUSED = 0.05
"""Share of the flags that have a value which no run can have."""
_CHOICES: dict[str, tuple[float, tuple[object, ...], tuple[object, ...]]] = {
    "max_seq_len": (0.7, ("auto", 1, 2, 7, 64, 64, 96), (97, 0, 10**9)),
    "batch_size": (0.4, (1, 2, 3, 64), (0, -1)),
    "block_mb": (0.2, (1, 2048), (0,)),
    "dtype": (0.2, ("float16", "float32"), ("float64",)),
    "model_dtype": (0.2, ("float32", "bfloat16", "float16"), ("int8",)),
    "limit": (0.2, (1, 3, 1000), (0, -2)),
    "layers": (0.25, ("all", "0", "-1", "0-1"), ("0,2", "7", "none", "", "2-0")),
    "heads": (0.25, ("all", "0", "-1"), ("0,1", "9", "x")),
    "positions": (0.3, ("all", "next", "last", "0,5", "0", "1000"), ("-1", "first")),
    "next_topk": (0.2, (1, 3, 1000), (0,)),
    "task": (0.1, ("auto",), ("causal", "masked", "encode", "seq2seq")),
    "mask_prob": (0.03, (0.15,), (0, 0.3, 0.99, 1, -1, "nan")),
    "dec_max_len": (0.03, ("auto",), (1, 5, 0)),
    "seed": (0.1, (0, 1), (-1,)),
    "device": (0.05, ("cpu",), ("gpu", "cuda:7")),
}
"""Flag to how often it is given, values that most runs can have, and values that few or none can."""


@dataclass(frozen=True)
class Case:
    """One extraction.

    Attributes:
        family: Of the model; `overrides` are those of its config.
        suffix, content: The file of texts.
        flags: All others.
    """

    family: str
    overrides: tuple[tuple[str, int], ...]
    suffix: str
    content: bytes
    flags: tuple[str, ...]

    @property
    def kind(self) -> str:
        """decoder, encoder or encoder-decoder."""
        if self.family in _DECODERS:
            return "decoder"
        return "encoder" if self.family in _ENCODERS else "encoder-decoder"

    def write(self, folder: Path) -> Path:
        """Write the file of texts."""
        path = folder / f"texts.{self.suffix}"
        path.write_bytes(self.content)
        return path


def case(seed: int) -> Case:
    """Return the case of a seed."""
    r = random.Random(seed)
    family = r.choice(r.choice((_DECODERS, _DECODERS, _ENCODERS, _ENCODER_DECODERS)))
    suffix, content = (
        r.choice(_BROKEN)
        if r.random() < 0.08
        else _file(r, _texts(r, long=(LONG if seed >= IN_CI else LONG // 10) if seed % 100 == 7 else 0))
    )
    return Case(family, _overrides(r, family), suffix, content, _flags(r, family))


def _overrides(r: random.Random, family: str) -> tuple[tuple[str, int], ...]:
    layers, heads = r.randrange(1, 4), r.choice((1, 2, 4))
    if family in _GROUPED:
        sizes = {"num_attention_heads": heads, "num_key_value_heads": r.choice([n for n in (1, 2, 4) if n <= heads])}
        return (("num_hidden_layers", layers), *sizes.items())
    if family in {"gpt2", "bloom"}:
        return (("n_layer", layers), ("n_head", heads))
    if family in {"gpt_neox", "phi", "opt", "bert", "roberta", "electra"}:
        return (("num_hidden_layers", layers),)
    return ()


def _texts(r: random.Random, *, long: int) -> list[str]:
    texts = [r.choice(_TEXTS)(r) for _ in range(r.randrange(1, 9))]
    if r.random() < 0.1:
        texts.append("a lone surrogate \ud83d")
    if long:
        texts.append("one very long line " * (long // 19))
    r.shuffle(texts)
    return texts


def _file(r: random.Random, texts: list[str]) -> tuple[str, bytes]:
    """Return the texts as a file of some kind; a lone surrogate can be written in JSON alone."""
    suffix = r.choice(("txt", "jsonl", "csv", "parquet"))
    if any("\ud800" <= c <= "\udfff" for text in texts for c in text):
        suffix = "jsonl"
    if suffix == "txt":
        return suffix, "\n".join(texts).encode()
    if suffix == "jsonl":
        return suffix, "\n".join(json.dumps({"text": text, "n": i}) for i, text in enumerate(texts)).encode()
    if suffix == "csv":
        out = io.StringIO()
        csv.writer(out).writerows([["text", "more"], *([text, "1"] for text in texts)])
        return suffix, out.getvalue().encode()
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), sink)
    return suffix, sink.getvalue()


def _flags(r: random.Random, family: str) -> tuple[str, ...]:
    """Return flags, most of which make sense; one in so many does not."""
    flags: list[str] = ["--capture", *r.sample(_CAPTURES, r.randrange(1, 5))]
    if family not in _DECODERS and "logits" in flags and r.random() < 0.5:
        flags.remove("logits")
    for name, (often, fine, refused) in _CHOICES.items():
        if r.random() < often:
            flags += [f"--{name}", str(r.choice(refused if r.random() < _REFUSED else fine))]
    if family in _ENCODER_DECODERS and r.random() < 0.8:
        flags += ["--target_column", r.choice(("text", "text", "text", "missing"))]
    for name in ("all_positions", "store_unembed", "skip_headings", "resume", "overwrite", "plan"):
        if r.random() < 0.03:
            flags.append(f"--{name}")
    return tuple(flags)
