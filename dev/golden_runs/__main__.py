"""`python -m dev.golden_runs`: make one small run of each kind of decision, or compare two folders of them."""

import argparse
import json
import os
import random
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from dev.golden_runs.comparison import compare_folders

ENCODER_CAPTURES: Final = ("--capture", "attn", "qkv", "hidden", "resid", "attn_out", "mlp_out", "head_out", "mlp_act")
CAPTURES: Final = (*ENCODER_CAPTURES, "logits")
LENS_CAPTURES: Final = ("--capture", "attn", "qkv", "hidden", "resid")
TINYWORLD: Final = ("--dataset", "tinyworld", "--limit", "10")
PAIRS: Final = ("--text_file", "pairs.jsonl")
TARGETS: Final = (*PAIRS, "--target_column", "target")
LLAMA: Final = ("nexttok", "--model_path", "models/llama")
SELECTED: Final = ("--positions", "last", "--layers", "0,-1", "--heads", "1,2")
VALIDATE: Final = "index --validate"

RUNS: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "next_token": (
        ("nexttok", "--model", "demo", *TINYWORLD, *CAPTURES, "--all_positions", "--block_mb", "1"),
        ("lens", "attribution", "attention", "compare", "compare --by n_tokens", VALIDATE),
    ),
    "all_positions": (
        (*LLAMA, *PAIRS, *CAPTURES, "--all_positions", "--dtype", "float32", "--store_unembed"),
        ("lens --all_positions --of after", "attribution --all_positions --of after", "attention", VALIDATE),
    ),
    "last_position": ((*LLAMA, *PAIRS, *CAPTURES, *SELECTED), (VALIDATE,)),
    "prompt_choice": (
        ("csqa-dec", "--model", "demo", *TINYWORLD, *LENS_CAPTURES),
        ("lens", "attribution", "attention", "compare", VALIDATE),
    ),
    "prompt_choice_text": (
        ("csqa-dec", "--model", "demo", *TINYWORLD, *LENS_CAPTURES, "--answers", "text"),
        ("lens --all_positions", "attribution --all_positions", "compare", VALIDATE),
    ),
    "multiple_choice": (
        ("csqa-enc", "--model_path", "models/bert", *TINYWORLD, *ENCODER_CAPTURES, "--store_unembed"),
        ("lens", "attribution", "attention", "compare", VALIDATE),
    ),
    "masked": (
        ("extract", "--model_path", "models/masked_bert", *PAIRS, *CAPTURES),
        ("lens", "attention", "compare --by n_tokens", VALIDATE),
    ),
    "encode": (
        ("extract", "--model_path", "models/bert", *PAIRS, "--task", "encode", *ENCODER_CAPTURES),
        ("attention", "compare --by n_tokens", VALIDATE),
    ),
    "seq2seq": (
        ("extract", "--model_path", "models/bart", *TARGETS, *CAPTURES),
        ("lens --all_positions", "attention", "compare", VALIDATE),
    ),
    "seq2seq_next": (
        ("extract", "--model_path", "models/t5", *TARGETS, *LENS_CAPTURES, "--positions", "next"),
        ("lens", "compare", VALIDATE),
    ),
}
"""A run's folder to the command that makes it, and the commands that read it."""

BY_COMMAND: Final = {"compare": ("--n_boot", "50", "--folds", "2")}


def make(folder: Path) -> None:
    """Make models, texts, runs and results in a new folder, from within it: every path in them is a relative one."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    folder.mkdir(parents=True)
    os.chdir(folder)
    _save_models(Path("models"))
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in _pairs(8)), encoding="utf-8")
    for name, (extraction, readings) in RUNS.items():
        _run(*extraction, "--device", "cpu", "--out_dir", name)
        for reading in readings:
            command, *flags = reading.split()
            _run(command, name, *flags, *BY_COMMAND.get(command, ()))
        sys.stdout.write(f"{name}: made\n")


def _save_models(folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    import torch
    from support.encoder_decoders import save_tiny_encoder_decoder
    from support.encoders import save_tiny_encoder, save_tiny_masked_encoder
    from support.models import save_tiny_decoder

    torch.set_num_threads(1)
    save_tiny_decoder(folder / "llama", "llama", bos=True)
    save_tiny_encoder(folder / "bert", "bert")
    save_tiny_masked_encoder(folder / "masked_bert", "bert")
    save_tiny_encoder_decoder(folder / "bart", "bart")
    save_tiny_encoder_decoder(folder / "t5", "t5")


def _pairs(count: int) -> list[dict[str, str]]:
    """Return texts of unlike length, each with what an encoder-decoder is to say of it."""
    words, draw = ("a", "bird", "sees", "the", "old", "well", "near", "two", "grey", "stones"), random.Random(7)
    texts = [draw.choices(words, k=draw.randint(3, 12)) for _ in range(count)]
    return [{"text": " ".join(text), "target": " ".join(reversed(text[:4]))} for text in texts]


def _run(*words: str) -> None:
    """Run a command of `decision-traces` in this process, which spares loading torch each time."""
    from decision_traces.cli.main import main

    sys.argv = ["decision-traces", *words, "--quiet"]
    try:
        main()
    except SystemExit as end:
        if end.code:
            sys.exit(f"`{' '.join(sys.argv)}` ended with {end.code}")


def compare(one: Path, other: Path, ignore: Collection[str]) -> int:
    """Print a line for each kind and one for each difference, and return the exit code."""
    found = compare_folders(one, other, ignore)
    for kind, differences in found.items():
        count = len(differences)
        said = f"{count} difference{'s' if count > 1 else ''}" if count else "identical"
        sys.stdout.write("".join(f"{line}\n" for line in (f"{kind}: {said}", *(f"  {one}" for one in differences))))
    return int(any(found.values()))


def main() -> int:
    """Run `make DIR` or `compare DIR DIR`, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dev.golden_runs", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="make the runs in a new folder")
    making.add_argument("folder", type=Path)
    comparing = commands.add_parser("compare", help="compare two such folders; exit with 1 where they differ")
    comparing.add_argument("one", type=Path)
    comparing.add_argument("other", type=Path)
    comparing.add_argument("--ignore", nargs="+", default=(), metavar="PATTERN", help="FILE or FILE:JSON_PATH, with *")
    args = parser.parse_args()
    try:
        if args.command == "compare":
            return compare(args.one, args.other, args.ignore)
        make(args.folder)
    except (FileExistsError, FileNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
