"""What is computed on a run: damaged, written on full disks, killed, and written twice at once.

Nothing that was not computed is ever read or shown, and the state before stays.
"""

import gc
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from faults.processes import files_of, until
from faults.test_disk import leave_room
from starlette.testclient import TestClient

from decision_traces import TraceStore
from decision_traces.analysis.grids import CONTRIBUTION_GRID, LENS_GRID, Grid
from decision_traces.errors import ResultError, SelectionError, UsageError
from decision_traces.extract.answer import AnswerConfig, extract_answers
from decision_traces.format.analyses import RECORD_FILE
from decision_traces.page import resources
from decision_traces.page.app import create_app
from decision_traces.page.bundle import write_bundle
from decision_traces.page.runs import PageRun
from decision_traces.store.files.results_place import ResultsPlace
from decision_traces.store.reading.results import find_result
from decision_traces.store.validate.results import check_results
from decision_traces.store.validate.run import failures, validate_run

FLAGS: dict[str, tuple[str, ...]] = {
    "lens": ("--all_positions",),
    "attribution": ("--all_positions",),
    "attention": (),
    "compare": ("--n_boot", "5", "--folds", "2"),
}
ALL = pytest.mark.long


def call(command: str, run: Path, *flags: str) -> int:
    """Run a command in this process and return its exit code."""
    with pytest.raises(SystemExit) as stop:
        import_module(f"decision_traces.cli.{command}").main([str(run), *flags, "--quiet"])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions answered by the embedded model, with all that can be computed on them."""
    run = tmp_path_factory.mktemp("results") / "run"
    captures = ("attn", "qkv", "hidden", "resid")
    extract_answers(AnswerConfig(model="demo", dataset="tinyworld", limit=4, capture=captures, out_dir=run))
    for command, flags in FLAGS.items():
        assert call(command, run, *flags) == 0
    return run


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Callable[[], Path]:
    """Make copies of it, of hard links: what is damaged in one must be written anew."""
    made = iter(range(10**6))
    return lambda: Path(shutil.copytree(whole, tmp_path / str(next(made)) / "run", copy_function=os.link))


def write_over(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


# -- damage ------------------------------------------------------------------------------------------------------


def readings(run: Path, results: Iterable[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what stands in some results as the readers give it."""
    store = TraceStore(run)
    for name in results:
        result = find_result(ResultsPlace(run), name)
        assert result is not None
        for file in result.files:
            if file.endswith(".parquet"):
                yield f"{name}/{file}", lambda result=result, file=file: result.table(file).to_pylist()
        if name in GRIDS:
            grid = Grid(result, GRIDS[name], store)
            yield f"{name}, attributes", lambda grid=grid: grid.attrs
            for array in (a for a in ARRAYS if a in grid):
                yield f"{name}, {array}", lambda g=grid, a=array: [g.read(a, row).tolist() for row in (1, 3)]


GRIDS = {"lens": LENS_GRID, "attribution": CONTRIBUTION_GRID}
ARRAYS = ("positions", "candidates", "known", "prob", "rank", "entropy", "kl", "top_ids", "top_probs",
          "candidate_probs", "parts", "heads")  # fmt: skip


def read(run: Path, results: Iterable[str] = tuple(FLAGS)) -> dict[str, Any]:
    """Return what can be read; what is said to be damaged is left out."""
    found = {}
    try:
        for name, reading in readings(run, results):
            found[name] = reading()
    except ResultError:
        return found
    return found


def shown(run: Path, position: int) -> dict[str, Any]:
    """Return what the page answers about the results, never a 5xx; what it leaves out is left out."""
    page = PageRun("r", ResultsPlace(run))
    asked = {
        "stable_from": lambda: resources.column(page, "stable_from", 0),
        "flips": lambda: resources.column(page, "flips", 0),
        "lens": lambda: resources.lens(page, 1),
        "lens in numbers": lambda: resources.lens_block(page, 1, 0),
        "lens, prob": lambda: resources.lens_values(page, 1, "prob"),
        "by_choice": lambda: resources.by_choice(page, 2),
        "contributions": lambda: resources.contributions(page, 1, position),
    }
    found: dict[str, Any] = {}
    for name, make in asked.items():
        with suppress(ResultError, SelectionError, UsageError):  # 404 and 400; any other would be a 5xx
            found[name] = make().body.replace(str(run).encode(), b"")
    about = json.loads(resources.meta(page).body)
    found |= {f"{key}, attributes": value for key in ("lens", "contributions") if (value := about[key]) is not None}
    assert all(said["why"] and said["command"] for said in about["missing"].values())
    return found


@pytest.fixture(scope="module")
def reference(whole: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    position = int(TraceStore(whole).tokens["answer_pos"][1])
    found, seen = read(whole), shown(whole, position)
    assert len(found) == 27 and len(seen) == 9 and failures(validate_run(whole)) == []
    return found, seen, position


def shown_alike(path: str, answer: Any, wanted: Any) -> bool:
    """Whether an answer is the right one; the texts of tokens may be left out."""
    if path not in {"lens", "contributions"}:
        return bool(answer == wanted)
    answer, wanted = json.loads(answer), json.loads(wanted)
    if path == "lens":
        return answer.pop("words").items() <= wanted.pop("words").items() and answer == wanted
    texts = zip(*([c.pop("text") for c in one["candidates"]] for one in (answer, wanted)), strict=True)
    return answer == wanted and all(a == b or a.startswith("#") for a, b in texts)


def is_said_or_right(damaged: Path, file: str, reference: tuple[dict[str, Any], dict[str, Any], int]) -> None:
    """Nothing is read or shown as another value, and the validation names the result that the file is of."""
    found, seen, position = reference
    command = file.split("/")[1]
    for name, value in read(damaged, [command]).items():
        assert json.dumps(value) == json.dumps(found[name]), name
    for path, answer in shown(damaged, position).items():
        assert shown_alike(path, answer, seen[path]), path
    assert [check.where for check in failures(list(check_results(ResultsPlace(damaged))))] == [f"analysis/{command}"]


def damaged_files(run: Path) -> list[str]:
    return sorted(p.relative_to(run).as_posix() for p in (run / "analysis").rglob("*") if p.is_file())


@pytest.mark.parametrize("n", [60, pytest.param(600, marks=ALL)])
def test_a_changed_bit_is_never_another_number(n: int, whole: Path, copy, reference) -> None:
    dice, run, names = random.Random(16), copy(), damaged_files(whole)
    for number in range(n):
        file = names[number % len(names)] if n > len(names) else dice.choice(names)
        content = (whole / file).read_bytes()
        changed = bytearray(content)
        changed[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        write_over(run / file, bytes(changed))
        is_said_or_right(run, file, reference)
        write_over(run / file, content)


@pytest.mark.parametrize("n", [4, pytest.param(60, marks=ALL)])
def test_files_cut_removed_added_and_swapped_are_never_other_numbers(n: int, whole: Path, copy, reference) -> None:
    dice, names = random.Random(17), damaged_files(whole)
    for number in range(n):
        file, damaged = dice.choice(names), copy()
        content = (damaged / file).read_bytes()
        if number % 4 == 0:
            write_over(damaged / file, content[: dice.randrange(len(content))])
        elif number % 4 == 1:
            (damaged / file).unlink()
        elif number % 4 == 2:
            (damaged / file).with_name("added").write_bytes(content)
        else:
            other = dice.choice([f for f in names if (whole / f).read_bytes() != content])
            write_over(damaged / file, (whole / other).read_bytes())
        is_said_or_right(damaged, file, reference)


def test_other_numbers_whose_own_checksums_agree_are_found(whole: Path, copy, reference) -> None:
    """As from another version of the same result: the record alone can tell."""
    damaged = copy()
    folder = damaged / "analysis/lens/lens.zarr/prob"
    write_over(folder / "c.0.0.0", (folder / "c.0.0.0").read_bytes())
    array = zarr.open_array(folder, mode="r+")
    array[...] = array[...][::-1]
    is_said_or_right(damaged, "analysis/lens", reference)


def test_one_damaged_result_empties_its_own_panels_alone(whole: Path, copy, tmp_path: Path) -> None:
    run = copy()
    table = run / "analysis/attribution/contributions.zarr/parts/c.0.0.0.0"
    write_over(table, table.read_bytes()[:-1] + b"x")
    page = PageRun("r", ResultsPlace(run))
    client = TestClient(create_app([page]), base_url="http://127.0.0.1")
    position = int(TraceStore(run).tokens["answer_pos"][1])
    answer = client.get(f"/api/r/e/1/contributions/{position}.json")
    assert answer.status_code == 404 and "is damaged: contributions.zarr/parts/c.0.0.0.0" in answer.json()["error"]
    meta = client.get("/api/r/meta.json").json()
    assert list(meta["missing"]) == ["contributions"] and meta["lens"] is not None
    said = meta["missing"]["contributions"]
    assert "is damaged: contributions.zarr/parts" in said["why"] and said["command"].endswith("--all_positions")
    assert client.get("/api/r/e/1/by_choice.json").status_code == client.get("/api/r/e/1/lens.json").status_code == 200
    write_bundle([run], tmp_path / "site")
    held = {p.relative_to(tmp_path / "site" / "api").as_posix() for p in (tmp_path / "site" / "api").rglob("*.json")}
    assert any(p.endswith("e/1/lens.json") for p in held) and not any("contributions" in p for p in held)


def test_an_analysis_is_made_again_as_the_sentence_says(whole: Path, copy) -> None:
    run = copy()
    shard = run / "analysis/lens/lens.zarr/prob/c.0.0.0"
    write_over(shard, b"x" * shard.stat().st_size)
    (failed,) = failures(validate_run(run))
    assert "lens.zarr/prob/c.0.0.0 has not the size or CRC-32C" in failed.detail
    assert f"Run `decision-traces lens {run}` again." in failed.detail
    assert call("index", run, "--validate") == 1
    assert call("lens", run) == 0 and failures(validate_run(run)) == []


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shape_that_no_run_has_is_refused_before_anything_is_made_of_it(axis: int, whole: Path, copy) -> None:
    run = copy()
    path = run / "analysis/lens/lens.zarr/prob/zarr.json"
    told = json.loads(path.read_text())
    sharding = told["codecs"][0]["configuration"]["chunk_shape"]
    for shape in (told["shape"], told["chunk_grid"]["configuration"]["chunk_shape"], sharding):
        shape[axis] = 10**10
    write_over(path, json.dumps(told).encode())
    reseal(run / "analysis" / "lens")
    grid = Grid(find_result(ResultsPlace(run), "lens"), LENS_GRID, TraceStore(run))
    with pytest.raises(ResultError, match=r"lens\.zarr/prob is not laid out as this package writes it"):
        grid.read("prob", 0)


def reseal(folder: Path) -> None:
    """Let the record agree with what lies there, as a stranger can."""
    from decision_traces.store.files.folder import checksum, write_sealed

    record = json.loads((folder / RECORD_FILE).read_text())
    record["files"] = {name: list(checksum(folder / name)) for name in record["files"]}
    (folder / RECORD_FILE).unlink()
    write_sealed(folder / RECORD_FILE, record)


# -- disks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [True, False], ids=["with a result before", "with none"])
@pytest.mark.parametrize(
    ("command", "rooms"),
    [
        ("attention", (0, 2, 9)),
        pytest.param("attention", range(0, 60, 2), marks=ALL),
        pytest.param("lens", range(0, 200, 8), marks=ALL),
        pytest.param("attribution", range(0, 200, 8), marks=ALL),
        pytest.param("compare", range(0, 200, 8), marks=ALL),
        ("index", (0,)),
    ],
)
def test_a_full_disk_leaves_the_state_before(command: str, rooms, old: bool, whole: Path, tmpfs, capsys) -> None:
    disk = tmpfs("size=64m")
    run = disk / "run"
    shutil.copytree(whole, run)
    if not old:
        shutil.rmtree(run / "analysis" / command, ignore_errors=True)
    elif command == "index":
        assert call("index", run) == 0
    before, filled, capsys_out = files_of(disk), 0, capsys.readouterr()
    assert capsys_out.err == ""
    for room in rooms:
        leave_room(disk, room)
        code = call(command, run, *FLAGS.get(command, ()))
        out, err = capsys.readouterr()
        if code == 0:
            break
        filled += 1
        said = (err or out).strip().splitlines()
        assert code == 1 and len(said) == 1, err or out
        assert "is full" in said[0] or "could not be written" in said[0] or "cannot be written" in said[0]
        assert files_of(disk) == before
    gc.collect()  # what an error still holds open keeps the disk from being unmounted
    print(command, f"{filled} full disks")  # noqa: T201
    assert filled >= min(3, len(rooms))


# -- kills -------------------------------------------------------------------------------------------------------


def is_whole(run: Path, before: dict[str, bytes], command: str) -> bool:
    """Return whether a run after a kill has the new result; it has the old one or the new one, and both are right."""
    result = find_result(ResultsPlace(run), command)
    assert result is not None
    result.check()
    now, old = ({f: raw for f, raw in files.items() if "/." not in f} for files in (files_of(run), before))
    others = [{f: raw for f, raw in files.items() if not f.startswith(f"analysis/{command}/")} for files in (now, old)]
    assert others[0] == others[1]
    return now != old


@pytest.mark.parametrize(
    ("command", "points"),
    [
        ("attention", (2, 12, 20, 24, 28)),
        pytest.param("attention", range(1, 60), marks=ALL),
        pytest.param("compare", range(1, 90, 3), marks=ALL),
        pytest.param("attribution", range(1, 260, 5), marks=ALL),
        pytest.param("lens", range(1, 400, 6), marks=ALL),
    ],
)
def test_a_kill_before_any_call_leaves_the_old_result_or_the_new(command: str, points, copy, commands) -> None:
    run, counts = copy(), {"old": 0, "new": 0}
    for point in points:
        before = files_of(run)
        place = str(run / "analysis")
        ended = commands.run("killed", point, place, f"src.cli.{command}_traces", run, *FLAGS[command])
        if ended.code == 0:
            break
        assert ended.code == -9, ended.err
        counts["new" if is_whole(run, before, command) else "old"] += 1
    print(command, counts)  # noqa: T201
    assert counts["old"] >= 2 and counts["new"] >= 1
    assert call(command, run, *FLAGS[command]) == 0
    assert sorted(p.name for p in (run / "analysis").iterdir()) == sorted(FLAGS)
    assert failures(validate_run(run)) == []


@ALL
def test_kills_at_random_instants(copy, commands) -> None:
    run, dice, killed = copy(), random.Random(5), 0
    for _ in range(60):
        before = files_of(run)
        process = commands.start("src.cli.lens_traces", run, *FLAGS["lens"])
        until(lambda: any((run / "analysis").glob(".lens.*")))
        time.sleep(dice.uniform(0, 2.0))
        process.signal(9)
        killed += process.wait().code == -9
        is_whole(run, before, "lens")
    assert killed > 30
    assert call("lens", run) == 0 and failures(validate_run(run)) == []
    assert sorted(p.name for p in (run / "analysis").iterdir()) == sorted(FLAGS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_says_so_and_leaves_the_state_before(number: int, copy, commands) -> None:
    run = copy()
    before = files_of(run.parent)
    process = commands.start("src.cli.lens_traces", run)
    until(lambda: any((run / "analysis").glob(".lens.*/record.json")))
    process.signal(number)
    ended = process.wait()
    assert ended.code == 128 + number and ended.said() == "Stopped; nothing was left half-done."
    assert files_of(run.parent) == before


# -- two at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "pairs"), [("attention", 3), pytest.param("lens", 100, marks=ALL)])
def test_two_at_once_make_one_good_result(command: str, pairs: int, copy, commands) -> None:
    run, refused = copy(), 0
    for _ in range(pairs):
        shutil.rmtree(run / "analysis" / command)
        two = [commands.start(f"src.cli.{command}_traces", run, *FLAGS[command]) for _ in range(2)]
        ended = [process.wait() for process in two]
        assert [e.code for e in ended].count(0) >= 1
        for one in (e for e in ended if e.code):
            assert one.code == 1 and "is being written by another process now" in one.said()
            refused += 1
        result = find_result(ResultsPlace(run), command)
        assert result is not None
        result.check()
    print(command, f"{refused} of {pairs} refused")  # noqa: T201
    assert refused >= pairs // 2
    assert sorted(p.name for p in (run / "analysis").iterdir()) == sorted(FLAGS)
    assert sorted(p.name for p in run.parent.iterdir()) == ["run"]


def test_numbers_of_the_grid_are_those_that_any_zarr_reader_gives(whole: Path) -> None:
    grid = Grid(find_result(ResultsPlace(whole), "lens"), LENS_GRID, TraceStore(whole))
    group = zarr.open_group(whole / "analysis/lens/lens.zarr", mode="r")
    for name in ("positions", "rank", "prob", "top_probs"):
        assert np.array_equal(grid.read(name, 2), group[name][2])
