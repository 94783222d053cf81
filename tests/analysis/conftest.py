"""Runs of tiny decoders over a few lines, and of the demo model over questions; made once a session, never changed."""

from collections.abc import Callable
from pathlib import Path

import pytest

DENSE = ("attn", "qkv", "hidden", "resid", "attn_out", "mlp_out", "head_out", "mlp_act", "logits")
TEXTS = ("The cat sat on the mat.", "ab", "x", "A somewhat longer line, for the lens.", "abc abc abc ab", "Who?")


@pytest.fixture(scope="session")
def traced(tiny_folder, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that gives the run of a tiny decoder of one family over `TEXTS`, stored in float32."""
    from decision_traces.extract.next_token import NextTokenConfig, extract_next_token

    made: dict[tuple, Path] = {}

    def run(family: str, **options) -> Path:
        key = (family, *sorted(options.items()))
        if key not in made:
            out = tmp_path_factory.mktemp(family)
            (out / "lines.txt").write_text("\n".join(TEXTS))
            wanted = {"capture": ("attn", "qkv", "hidden", "resid"), "dtype": "float32", **options}
            made[key] = extract_next_token(
                NextTokenConfig(
                    model="tiny",
                    model_path=tiny_folder(family),
                    text_file=out / "lines.txt",
                    out_dir=out / "run",
                    **wanted,
                )
            )
        return made[key]

    return run


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that gives a run of the demo model over 30 of its texts; it is right on nearly all."""
    from decision_traces.extract.next_token import NextTokenConfig, extract_next_token

    made: dict[tuple, Path] = {}

    def run(**options) -> Path:
        key = tuple(sorted(options.items()))
        if key not in made:
            out = tmp_path_factory.mktemp("demo") / "run"
            wanted = {"capture": DENSE, "dtype": "float32", "limit": 30, **options}
            made[key] = extract_next_token(NextTokenConfig(model="demo", dataset="tinyworld", out_dir=out, **wanted))
        return made[key]

    return run


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's answers to 24 questions of its small world, stored in float32."""
    from decision_traces.extract.answer import AnswerConfig, extract_answers

    out = tmp_path_factory.mktemp("questions") / "run"
    return extract_answers(
        AnswerConfig(model="demo", dataset="tinyworld", limit=24, capture=DENSE, dtype="float32", out_dir=out)
    )
