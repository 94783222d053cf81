"""`finetune --overwrite`: only a checkpoint of ours is replaced, at once, whatever comes in between."""

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.processes import Commands, files_of

from decision_traces.errors import DiskSpaceError, Interrupted, RunError, RunExistsError, UsageError
from decision_traces.finetuning.config import FinetuneConfig
from decision_traces.finetuning.place import is_whole
from decision_traces.finetuning.train import finetune

FINETUNE = "src.cli.finetune_csqa_enc"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")


@pytest.fixture(scope="module")
def base(tiny_encoder_folder, tmp_path_factory) -> Path:
    """A tiny encoder to train."""
    return Path(shutil.copytree(tiny_encoder_folder("bert"), tmp_path_factory.mktemp("base") / "model"))


@pytest.fixture(scope="module")
def config(base: Path) -> Callable[..., FinetuneConfig]:
    """The smallest training."""
    usual = {"model": "tiny", "model_path": base, "dataset": "tinyworld", "device": "cpu", "max_seq_len": 16}
    small = {"train_limit": 4, "eval_limit": 2, "epochs": 1.0, "batch_size": 2}
    return lambda out, **other: FinetuneConfig(out_dir=out, **{**usual, **small, **other})


@pytest.fixture(scope="module")
def old(config, tmp_path_factory) -> Path:
    """A checkpoint; tests copy it."""
    return finetune(config(tmp_path_factory.mktemp("old") / "ft")).folder


def put(path: Path, text: str = "years of work") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def a_home(ft: Path, _: Path) -> None:
    put(ft / ".ssh" / "id_rsa")


def some_model_with_a_meta(ft: Path, _: Path) -> None:
    put(ft / "finetune_meta.json", "{}")
    put(ft / "model.safetensors")


def a_checkpoint_with_notes(ft: Path, old: Path) -> None:
    put(Path(shutil.copytree(old, ft)) / "notes.txt")


def a_checkpoint_with_a_broken_seal(ft: Path, old: Path) -> None:
    files = Path(shutil.copytree(old, ft)) / "finetune_files.json"
    files.write_text(files.read_text().replace("config.json", "thesis.json"))


def a_foreign_partial(ft: Path, _: Path) -> None:
    put(ft.with_name(".ft.partial") / "download.bin")


def an_unfinished_run(ft: Path, _: Path) -> None:
    put(ft.with_name(".ft.partial") / "ledger.jsonl", '{"made_by": "decision-traces", "plan": {}}\n')


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (a_home, r"ft is there and is not a checkpoint folder"),
        (some_model_with_a_meta, r"ft is not proved to be a checkpoint of `finetune`"),
        (a_checkpoint_with_notes, r"no record .* \(notes\.txt\)"),
        (a_checkpoint_with_a_broken_seal, r"finetune_files.json differs from its own digest"),
        (a_foreign_partial, r"\.ft\.partial .*nothing proves that decision-traces made"),
        (an_unfinished_run, r"\.ft\.partial .*nothing proves that decision-traces made"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_proved_ours_is_named_and_left(plant, said: str, config, old: Path, tmp_path: Path) -> None:
    plant(tmp_path / "ft", old)
    before = files_of(tmp_path)
    with pytest.raises(RunExistsError, match=said):
        finetune(config(tmp_path / "ft", overwrite=True))
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("where", [".", "..", "inside"])
def test_the_model_that_is_trained_is_never_in_the_way(where: str, config, base: Path) -> None:
    before = files_of(base.parent)
    with pytest.raises(UsageError, match=r"the model that is trained .* lies there"):
        finetune(config(base / where, overwrite=True))
    assert files_of(base.parent) == before


def test_a_checkpoint_is_replaced_by_the_next_one_and_nothing_is_left(config, old: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(shutil.copytree(old, tmp_path / "ft"))
    with pytest.raises(RunExistsError, match=r"ft already holds a checkpoint\. Replace it with --overwrite"):
        finetune(config(tmp_path / "link"))
    result = finetune(config(tmp_path / "link", overwrite=True, seed=7))
    assert result.folder == tmp_path / "ft" and (tmp_path / "link").is_symlink()
    assert json.loads((result.folder / "finetune_meta.json").read_text())["seed"] == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ft", "link"]
    listed = json.loads((result.folder / "finetune_files.json").read_text())["files"]
    assert listed.keys() | {"finetune_files.json"} == files_of(result.folder).keys()


def test_an_anonymous_checkpoint_says_of_no_byte_where_it_lies(config, base: Path, tmp_path: Path, monkeypatch) -> None:
    """Whatever a library writes into which file; an unfinished one has a plan that is no less silent."""
    home = tmp_path / "home"
    model = Path(shutil.copytree(base, home / "model"))
    for name, key in (("config.json", "_name_or_path"), ("tokenizer_config.json", "tokenizer_file")):
        settings = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps({**settings, key: str(model)}))
    plans: list[bytes] = []

    def look(line: str) -> None:
        plans.extend(path.read_bytes() for path in home.glob(".ft.partial/finetune_plan.json"))

    ft = finetune(config(home / "ft", model_path=model, anonymous=True), look).folder
    written = {path.relative_to(ft).as_posix(): path.read_bytes() for path in ft.rglob("*") if path.is_file()}
    assert len(written) == 6 and plans
    assert [name for name, content in written.items() if str(tmp_path).encode() in content] == []
    assert not any(str(tmp_path).encode() in plan for plan in plans)


def test_stopped_before_the_first_epoch_it_leaves_nothing_and_says_so(config, old: Path, tmp_path: Path) -> None:
    shutil.copytree(old, tmp_path / "ft")
    before = files_of(tmp_path)

    def stop(line: str) -> None:
        if line.startswith("Training"):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"Stopped\. No epoch was finished; nothing is left behind"):
        finetune(config(tmp_path / "ft", overwrite=True), stop)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("kilobytes", [4, 64, 400])
def test_a_full_disk_is_a_sentence_and_the_old_checkpoint_stays(kilobytes: int, config, old: Path, tmpfs) -> None:
    disk = tmpfs("size=64m")
    ft = Path(shutil.copytree(old, disk / "ft"))
    before = files_of(ft)
    free = shutil.disk_usage(disk).free
    (disk / "ballast").write_bytes(bytes(free - kilobytes * 1024))
    with pytest.raises(DiskSpaceError, match=r"The disk of .* is full\. ") as raised:
        finetune(config(ft, overwrite=True))
    kept = "--resume goes on" in str(raised.value)
    del raised  # or the file that torch could not write stays open
    gc.collect()
    assert files_of(ft) == before
    (disk / "ballast").unlink()
    assert finetune(config(ft, overwrite=True, resume=kept)).folder == ft
    assert [path.name for path in disk.iterdir()] == ["ft"]


def test_a_second_training_is_refused(config, tmp_path: Path) -> None:
    def second(line: str) -> None:
        if line.startswith("Training"):
            with pytest.raises(RunError, match="ft is being written by another process"):
                finetune(config(tmp_path / "ft"))

    assert is_whole(finetune(config(tmp_path / "ft"), second).folder)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)], ids=["decisive", "every"])
def test_killed_it_leaves_the_old_checkpoint_or_the_new_one(
    every: bool, commands: Commands, base: Path, old: Path, tmp_path: Path
) -> None:
    place, heard = tmp_path / "checkpoints", tmp_path / "heard"
    ft = place / "ft"
    flags = ["--model", "tiny", "--model_path", base, "--dataset", "tinyworld", "--max_seq_len", 16]
    flags += ["--train_limit", 4, "--eval_limit", 2, "--epochs", 1, "--batch_size", 2, "--device", "cpu"]
    flags += ["--out_dir", ft, "--overwrite"]

    def train(at: int | None) -> int:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(old, ft)
        how = {"folder": str(place), "at": at, "heard": str(heard), "exchange": True}
        return commands.start(FINETUNE, *flags, "--seed", 7, instants=how).wait().code

    before = files_of(old)
    assert train(None) == 0
    calls = heard.read_text().splitlines()
    named = next(i for i, call in enumerate(calls) if call.startswith("exchange"))
    for at in range(len(calls)) if every else (named, named + 1, named + 2):
        assert train(at) == -9, calls[at]
        assert files_of(ft) == before or is_whole(ft), calls[at]
        assert (files_of(ft) == before) == (at <= named), calls[at]
        again = commands.run(FINETUNE, *flags)
        assert again.code == 0, (calls[at], again)
        assert is_whole(ft) and [path.name for path in place.iterdir()] == ["ft"], calls[at]
