"""The workflows of the usage document, every command and every line of Python, run as they are written there.

`docs/seed_workflows.md` is the transcription that is run. Nothing is appended to its commands: tiny models lie in a
hub cache under the names gpt2 and roberta-base, and the data sets where `DECISION_TRACES_DATA` says.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from support.encoders import save_tiny_encoder
from support.models import save_tiny_decoder

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "seed_workflows.md").read_text(encoding="utf-8")
SEED = Path(os.environ.get("DECISION_TRACES_SHARED", ROOT.parent / "shared")) / "seed-usage.md"

TEXTS = [
    "= The tern colony =",
    "Terns nest on the gravel bank where the river is widest .",
    "Each pair keeps a pitch apart , and whoever comes near is met with cries . " * 5,  # longer than 256 tokens
    "By August the bank is quiet again .",
]
KEPT = {
    "spoon": "kitchen drawer", "saddle": "stable", "anchor": "boat", "telescope": "observatory", "plough": "farm",
    "easel": "studio", "ledger": "office", "hymn book": "church", "scalpel": "hospital", "net": "harbour",
}  # fmt: skip


def commands(page: str) -> list[list[str]]:
    """Every command of a page, its lines joined and PowerShell's slashes turned."""
    blocks = re.findall(r"```(sh|powershell)\n(.*?)```", page, flags=re.S)
    texts = [text.replace("`\n", " ").replace("\\", "/") if s == "powershell" else text for s, text in blocks]
    return [shlex.split(line) for text in texts for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, flags=re.S)


def shapes(page: str) -> dict[str, str]:
    """Path of an array to its shape as the page writes it."""
    found = re.findall(r"`(\w+\.zarr)/([^`]+)`[:| ]+`(\([^`]+\))`", page)
    return {f"{group}/{key}": shape for group, keys, shape in found for key in keys.strip("{}").split(",")}


def columns(page: str) -> list[str]:
    return re.findall(r"`((?:next|label|pred|is|choice)_[a-z_]+)`", page)


A_EXTRACT, A_CHECK, B_EXTRACT, C_TRAIN, C_EXTRACT, C_CHECK = commands(PAGE)
OPEN, OF_DECODER, OF_ENCODER = snippets(PAGE)


def questions(things: list[str]) -> str:
    """Five-choice questions as the file of CommonsenseQA has them, one an object and line."""
    places, lines = list(KEPT.values()), []
    for i, thing in enumerate(things):
        own = places.index(KEPT[thing])
        choices = [places[(own + 3 * (k - i % 5)) % 10] for k in range(5)]
        listed = [{"label": label, "text": text} for label, text in zip("ABCDE", choices, strict=True)]
        asked = {"question_concept": thing, "choices": listed, "stem": f"Where do you look for a {thing}?"}
        lines.append(json.dumps({"answerKey": "ABCDE"[i % 5], "id": str(i), "question": asked}))
    return "\n".join(lines) + "\n"


def in_hub_cache(cache: Path, name: str) -> Path:
    """The folder that the hub's library reads a model of this name from, without network."""
    commit, model = "0" * 40, cache / f"models--{name}"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    return model / "snapshots" / commit


@dataclass(frozen=True, slots=True)
class Workshop:
    """A folder with models and data, where commands are run."""

    folder: Path

    def run(self, argv: list[str]) -> str:
        """Run a command and return what it printed."""
        assert argv[:2] == ["python", "-m"]
        done = subprocess.run(
            [sys.executable, *argv[1:]],
            cwd=self.folder,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "HF_HUB_OFFLINE": "1",
                "HF_HUB_CACHE": str(self.folder / "hub"),
                "DECISION_TRACES_DATA": str(self.folder / "data"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(argv)}\n{done.stderr}"
        return done.stdout

    def python(self, *blocks: str) -> dict[str, Any]:
        """Execute Python here, one block after the other, and return its names."""
        scope: dict[str, Any] = {}
        with chdir(self.folder), pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(ROOT)
            for block in blocks:
                exec(block, scope)
        return scope


def open_workshop(folder: Path) -> Workshop:
    save_tiny_decoder(in_hub_cache(folder / "hub", "gpt2"), "gpt2", n_positions=256)
    save_tiny_encoder(in_hub_cache(folder / "hub", "roberta-base"), "roberta", max_position_embeddings=132)
    wikitext, csqa = folder / "data" / "wikitext-2-raw", folder / "data" / "commonsenseqa"
    wikitext.mkdir(parents=True)
    csqa.mkdir()
    (wikitext / "wiki.valid.raw").write_text(" \n" + " \n".join(f" {text}" for text in TEXTS) + " \n", encoding="utf-8")
    things = list(KEPT)
    (csqa / "train_rand_split.jsonl").write_text(questions(things * 2), encoding="utf-8")
    (csqa / "dev_rand_split.jsonl").write_text(questions(things[:6]), encoding="utf-8")
    return Workshop(folder)


# Tokens of the tiny GPT-2 are bytes: T of workflow B is the longest prompt.
LONGEST = """Question: Where do you look for a telescope?
A. farm
B. church
C. kitchen drawer
D. observatory
E. office
Answer:"""
TINY = {"L": 3, "H": 4, "D": 32, "d_head": 8, "d": 8}
SIZES = {
    "wt2_val500_gpt2": TINY | {"N": 4, "T": 256},
    "csqa_dec500": TINY | {"N": 6, "T": len(LONGEST)},
    "csqa_enc_val250_ft": TINY | {"N": 6, "C": 5, "T": 128},
    "with_attention": TINY | {"N": 6, "C": 5, "T": 128},
}
STREAM = {"hidden.zarr/h", *(f"res_{stage}.zarr/x" for stage in ("embed", "pre_attn", "post_attn", "post_mlp"))}
SAID = ("model", "dataset", "split", "capture", "n_truncated")
Place = tuple[str, tuple[int, ...]]


def test_the_page_holds_the_six_commands() -> None:
    assert [command[2] for command in commands(PAGE)] == [
        "src.cli.extract_trace_nexttok_dec",
        "src.cli.index_traces",
        "src.cli.extract_trace_csqa_gpt",
        "src.cli.finetune_csqa_enc",
        "src.cli.extract_trace_csqa_enc",
        "src.cli.index_traces",
    ]
    assert (len(shapes(PAGE)), len(columns(PAGE))) == (18, 16)


def sized(shape: str, run: str) -> tuple[int, ...]:
    """A shape as the page writes it, in numbers."""
    numbers: tuple[int, ...] = eval(shape, {"__builtins__": {}}, SIZES[run])
    return numbers


def check_shapes(traces: Path, run: str) -> None:
    """Opened with plain Zarr, arrays have the shapes of the table, and what was not asked for is not there."""
    side, words = ("enc_mc_", "with_attention") if "C" in SIZES[run] else ("dec_", "csqa_dec500")
    table = {path: shape for path, shape in shapes(PAGE).items() if path.startswith(side)}
    assert len(table) == 9
    found = {}
    for group in (traces / run).glob("*.zarr"):
        found |= {f"{group.name}/{key}": array.shape for key, array in zarr.open_group(group, mode="r").arrays()}
    wanted = {path for path in table if run == words or path.removeprefix(side) in STREAM}
    assert found == {path: sized(table[path], run) for path in wanted}


def check_python(traces: Path, run: str, snippet: str, names: dict[str, Any], arrays: dict[str, Place]) -> None:
    """The names that the page's Python left have the shapes of its comments, and hold what plain Zarr reads there."""
    assert (traces.parent / names["run_dir"]).samefile(traces / run)
    said = dict(re.findall(r"^(\w+) = .*?# (\(.*\))$", snippet, flags=re.M))
    assert said.keys() == arrays.keys()
    for name, (path, place) in arrays.items():
        group, key = path.split("/")
        stored = zarr.open_group(traces / run / group, mode="r")[key][place]
        assert names[name].shape == sized(said[name], run), name
        assert np.array_equal(names[name], stored) and np.any(stored), name


def check_columns(traces: Path, run: str, names: list[str]) -> None:
    table = pd.read_parquet(traces / run / "tokens.parquet")
    assert set(names) <= set(table.columns) and table[names].notna().all(axis=None)


def meta_of(traces: Path, run: str) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((traces / run / "meta.json").read_text("utf-8"))
    return meta


# One test a workflow, so that its commands are run once however the tests are spread over processes.
def test_workflows_of_the_decoder(tmp_path: Path) -> None:
    """A and B in the order of the page, then its Python on the newest run, which is B's."""
    workshop, traces = open_workshop(tmp_path), tmp_path / "traces"
    workshop.run(A_EXTRACT)
    assert re.search(r"All \d\d checks hold: 4 examples", workshop.run(A_CHECK))
    workshop.run(B_EXTRACT)
    names = workshop.python(OPEN, OF_DECODER)
    metas = [meta_of(traces, run) for run in ("wt2_val500_gpt2", "csqa_dec500")]
    assert [[meta[key] for key in SAID] for meta in metas] == [
        ["gpt2", "wikitext2", "validation", ["hidden", "resid"], 1],
        ["gpt2", "csqa", "validation", ["attn", "qkv", "hidden", "resid"], 0],
    ]
    check_shapes(traces, "wt2_val500_gpt2")
    check_shapes(traces, "csqa_dec500")
    check_columns(traces, "wt2_val500_gpt2", columns(PAGE)[:10])
    arrays: dict[str, Place] = {
        "A": ("dec_self_attn.zarr/attn", (0, 0, 0)),
        "Q": ("dec_self_qkv.zarr/q", (0, 0, 0)),
        "H": ("dec_hidden.zarr/h", (0,)),
        "R": ("dec_res_post_mlp.zarr/x", (0, 0)),
    }
    check_python(traces, "csqa_dec500", OF_DECODER, names, arrays)


def test_workflow_of_the_encoder(tmp_path: Path) -> None:
    """C, then the Python on the same extraction with attention, which the page's own does not capture."""
    workshop, traces = open_workshop(tmp_path), tmp_path / "traces"
    workshop.run(C_TRAIN)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    extract = [word.replace("YOUR_RUN_DIR", checkpoint.name) for word in C_EXTRACT]
    workshop.run(extract)
    assert re.search(r"All \d\d checks hold: 6 examples", workshop.run(C_CHECK))
    workshop.run([*extract, "--capture", "attn", "qkv", "hidden", "resid", "--out_dir", "traces/with_attention"])
    names = workshop.python(OPEN, OF_ENCODER)
    meta = meta_of(traces, "csqa_enc_val250_ft")
    assert [meta[key] for key in SAID] == ["roberta-base", "csqa", "validation", ["hidden", "resid"], 0]
    assert [meta["lineage"][key] for key in ("base_model", "n_train", "n_eval")] == ["roberta-base", 20, 6]
    assert meta["fresh_parameters"] == []
    check_shapes(traces, "csqa_enc_val250_ft")
    check_shapes(traces, "with_attention")
    check_columns(traces, "csqa_enc_val250_ft", columns(PAGE)[10:])
    choice = names["choice_idx"]
    arrays: dict[str, Place] = {
        "A_mc": ("enc_mc_attn.zarr/attn", (0, choice, 0, 0)),
        "Q_mc": ("enc_mc_qkv.zarr/q", (0, choice, 0, 0)),
        "H_mc": ("enc_mc_hidden.zarr/h", (0, choice)),
        "R_mc": ("enc_mc_res_post_mlp.zarr/x", (0, choice, 0)),
    }
    check_python(traces, "with_attention", OF_ENCODER, names, arrays)


def test_the_notebook_is_where_the_page_says() -> None:
    (name,) = set(re.findall(r"`(\w+\.ipynb)`", PAGE))
    assert (ROOT / name).is_file()


def test_the_page_is_a_true_copy() -> None:
    """Commands, flags, values, Python, shapes, columns and the notebook's name are the usage document's own."""
    if not SEED.is_file():
        pytest.skip(f"no usage document at {SEED} (set DECISION_TRACES_SHARED)")
    seed = SEED.read_text(encoding="utf-8")
    assert commands(PAGE) == commands(seed) and len(commands(seed)) == 6
    assert snippets(PAGE) == snippets(seed) and len(snippets(seed)) == 3
    assert shapes(PAGE) == shapes(seed) and len(shapes(seed)) == 18
    assert sorted(columns(PAGE)) == sorted(columns(seed)) and len(columns(seed)) == 16
    assert set(re.findall(r"`(\w+\.ipynb)`", PAGE)) == set(re.findall(r"`(\w+\.ipynb)`", seed))
