"""Checks of the folder itself: meta.json, the files against the manifest, the layout of every array."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import zarr

from decision_traces.checks import NAMED_FAILURES, CheckResult
from decision_traces.errors import DamagedRunError
from decision_traces.folders.plain import PlainFolder, strange_files
from decision_traces.format.arrays import (
    ARRAYS,
    INDEX_FILE,
    MANIFEST_FILE,
    META_FILE,
    OUTCOMES_FILE,
    ArraySpec,
    Side,
    arrays_for,
)
from decision_traces.format.meta import FIRST_FORMAT, OUR_FORMAT, RunMeta
from decision_traces.format.stages import D_HEAD, D_VALUE, DEPTH, LAYER, Prefix
from decision_traces.store.files.folder import (
    FileRecord,
    inode_of,
    meta_problem,
    problem_of,
    read_manifest,
    run_files,
    sealed_problem,
)
from decision_traces.store.files.zarr_files import refuse_metadata
from decision_traces.store.reading.arrays import DECODE_ERRORS, StoredArray
from decision_traces.store.reading.opened import OpenRun
from decision_traces.store.writing.layout import layer_numbers

_REQUIRED: Final = (
    "run_id",
    "arch",
    "n_examples",
    "max_seq_len",
    "num_layers",
    "num_heads",
    "head_dim",
    "dtype",
    "capture",
)


def check_meta(store: OpenRun) -> Iterator[CheckResult]:
    """Check meta.json against its digest, and its keys."""
    about = store.about
    problem = meta_problem(store.run_dir)
    detail = problem or ("matches its digest" if about.ours else "no digest: written by an older tool")
    yield CheckResult("meta.json unchanged", problem is None, where=META_FILE, detail=detail, array=META_FILE)
    trusted = not about.uncertified
    detail = "as its first rows were checked" if trusted else "kept with --uncertified though its certificate failed"
    yield CheckResult("run is certified", trusted, where=META_FILE, detail=detail, array=META_FILE)
    wrong = list(about.problems)
    if about.format_version is not None and about.format_version <= OUR_FORMAT:
        wrong += [f"arrays: there is no {name!r} in this format" for name in _noted(store) if name not in ARRAYS]
    required = (*_REQUIRED, *(() if about.format_version == FIRST_FORMAT else ("sides",)))
    missing = [key for key in required if about.ours and key not in store.meta]
    said = [*wrong, *([f"missing: {', '.join(missing)}"] if missing else [])]
    yield CheckResult(
        "meta.json complete", not said, float(len(wrong + missing)), META_FILE, "; ".join(said), META_FILE
    )


def _noted(store: OpenRun) -> Iterable[Any]:
    arrays = store.meta.get("arrays")
    return arrays if isinstance(arrays, dict) else ()


def check_index(run: Path) -> Iterator[CheckResult]:
    """Check index.json, where there is one, against its digest; indexing writes it anew."""
    path = run / INDEX_FILE
    if os.path.lexists(path):
        problem = sealed_problem(path)
        yield CheckResult(
            "index.json unchanged", problem is None, where=INDEX_FILE, detail=problem or "", array=INDEX_FILE
        )


def check_plain(run: Path) -> Iterator[CheckResult]:
    """Check that a run and what was computed on it is files and folders, without a link, pipe, socket or device."""
    name, found = "files and folders only", list(strange_files(run))
    for file, kind in found[:NAMED_FAILURES]:
        yield CheckResult(name, False, where=file, detail=f"{kind}; it was not opened", array=file)
    if len(found) > NAMED_FAILURES:
        rest = len(found) - NAMED_FAILURES
        yield CheckResult(name, False, float(len(found)), "", f"and {rest} more")
    if not found:
        yield CheckResult(name, True, 0.0, detail="no links, pipes, sockets or devices")


def check_files(store: OpenRun) -> Iterator[CheckResult]:
    """Check size and CRC-32C of every file against the manifest, and that none is missing or added."""
    name, run = "files match the manifest", store.run_dir
    try:
        manifest = read_manifest(run)
    except (DamagedRunError, KeyError, TypeError, ValueError) as error:
        yield CheckResult(name, False, where=MANIFEST_FILE, detail=str(error), array=MANIFEST_FILE)
        return
    present = set(run_files(run))
    if not manifest:
        yield CheckResult(
            name, True, detail=f"no manifest (older tool): the bytes of {len(present)} files cannot be proved"
        )
        return
    failures = list(_file_failures(store, manifest))
    added = sorted(present - manifest.keys())
    failures += [CheckResult(name, False, where=f, detail="not in the manifest", array=f) for f in added if _ours(f)]
    others = [f for f in added if not _ours(f)]
    yield from failures[:NAMED_FAILURES]
    if len(failures) > NAMED_FAILURES:
        rest = len(failures) - NAMED_FAILURES
        yield CheckResult(name, False, float(len(failures)), "", f"and {rest} files more")
    if not failures:
        note = f"; not part of the run: {', '.join(others[:5])}" if others else ""
        yield CheckResult(name, True, 0.0, "", f"{len(manifest)} files, size and CRC-32C{note}")


def _ours(file: str) -> bool:
    """Whether a file would be taken as part of the run by a reader."""
    return file.split("/")[0].endswith(".zarr") or file == OUTCOMES_FILE


def _file_failures(store: OpenRun, manifest: Mapping[str, FileRecord]) -> Iterator[CheckResult]:
    run, about, plain = store.run_dir, store.about, PlainFolder(store.run_dir)
    known: dict[tuple[Any, ...], str | None] = {}
    for file, expected in manifest.items():
        path = run / file
        # Hard links are one file: its bytes are read once, and hold for whoever expects the same of them.
        key = (*inode_of(path), expected)
        if key not in known:
            known[key] = problem_of(plain, path, expected)
        if (what := known[key]) is not None:
            yield CheckResult("files match the manifest", False, where=describe(file, about), detail=what, array=file)


def describe(file: str, about: RunMeta) -> str:
    """Return a file's name with what it holds, for shards: `… (dec_hidden, block 0, depth 3)`."""
    for spec in ARRAYS.values():
        place = file.removeprefix(f"{spec.path}/c/").split("/")
        if file.startswith(f"{spec.path}/c/") and len(place) == len(spec.axes):
            words = [
                f"{axis} {_number(spec, at, about)}"
                for axis, at in zip(spec.axes, place, strict=True)
                if axis in {LAYER, DEPTH}
            ]
            return f"{file} ({', '.join([spec.name, f'block {place[0]}', *words])})"
    return file


def _number(spec: ArraySpec, place: str, about: RunMeta) -> str:
    """Return the model's own number of a layer at a place on the layer axis, where the meta tells it."""
    if spec.side not in about.sides or not place.isdecimal():
        return place
    numbers = layer_numbers(spec, about.sides[spec.side])
    return str(numbers[int(place)]) if int(place) < len(numbers) else place


def promised(about: RunMeta) -> set[str]:
    """Return the names of the arrays that a run's meta says are there."""
    told: dict[Any, tuple[Side, ...]] = {"dec": ("dec",), "enc": ("enc",), "encdec": ("dec", "enc")}
    sides = tuple(about.sides) or told.get(about.arch, ())
    choices = about.n_choices is not None
    prefixes: list[Prefix] = ["enc_mc" if side == "enc" and choices else side for side in sides]
    specs = [spec for prefix in prefixes for spec in arrays_for(prefix, about.capture)]
    of_capture = {s.name for s in specs if about.arch == "encdec" or not s.across}
    return (of_capture | set(about.arrays)) - set(about.missing)


def check_presence(store: OpenRun) -> Iterator[CheckResult]:
    """Check that every array the meta promises is there, and none that it denies."""
    about, names = store.about, promised(store.about)
    found = [(n, "promised by meta.json and not there") for n in sorted(names) if not store.has(n)]
    for spec in (ARRAYS[name] for name in store.stored()):
        if spec.name in about.missing:
            found.append((spec.name, "there, though meta.json says that it is missing"))
        elif spec.across and about.arch != "encdec":
            found.append((spec.name, "there, though only encoder-decoders have cross-attention"))
        elif about.sides and spec.side not in about.sides:
            found.append((spec.name, f"there, though meta.json has no side {spec.side}"))
    for name, detail in found:
        yield CheckResult("arrays present", False, where=ARRAYS[name].path, detail=detail, array=name)
    if not found:
        yield CheckResult("arrays present", True, 0.0, detail=f"{len(names)} arrays")


def check_layout(store: OpenRun, array: StoredArray, n_rows: int | None) -> CheckResult:
    """Check shape, dtype, dimension names and the group of one array against meta and tokens."""
    about, spec, problems = store.about, array.spec, []
    dims = about.dims(spec.side)
    expected = array.shape if dims is None else dims.shape(spec)
    if array.shape != expected:
        problems.append(f"shape {array.shape}, the meta gives {expected}")
    if n_rows is not None and array.shape[0] != n_rows:
        problems.append(f"{array.shape[0]} rows, the token table has {n_rows}")
    if about.dtype not in {None, array.dtype.name}:
        problems.append(f"dtype {array.dtype}, the meta says {about.dtype}")
    names = getattr(array.zarr.metadata, "dimension_names", None)
    axes = spec.axes
    if about.format_version == FIRST_FORMAT:
        axes = tuple(D_HEAD if axis == D_VALUE else axis for axis in axes)
    if about.ours and names != axes:
        problems.append(f"dimension names {names}, expected {axes}")
    if about.block_rows not in {None, array.files_shape[0]}:
        problems.append(f"{array.files_shape[0]} rows per file, the meta says {about.block_rows}")
    try:
        refuse_metadata(PlainFolder(store.run_dir), store.run_dir / spec.group)
        zarr.open_group(store.run_dir / spec.group, mode="r")
    except (*DECODE_ERRORS, AttributeError, json.JSONDecodeError, DamagedRunError) as error:
        problems.append(f"the group {spec.group} does not open: {error}")
    detail = "; ".join(problems) or f"{array.dtype} {array.shape}"
    return CheckResult("layout", not problems, float(len(problems)), spec.path, detail, spec.name)


def check_max_abs(store: OpenRun, array: StoredArray, found: float) -> CheckResult:
    """Check the largest absolute value met against the one the meta recorded at extraction."""
    noted = store.about.arrays.get(array.spec.name)
    name = "largest value as recorded"
    if noted is None or noted.max_abs is None:
        return CheckResult(name, True, found, array.spec.name, "not recorded", array.spec.name)
    # The meta may hold the value before it was rounded to the storage type.
    ok = math.isclose(found, noted.max_abs, rel_tol=2**-10, abs_tol=2**-24)
    return CheckResult(name, ok, found, array.spec.name, f"recorded {noted.max_abs:.6g}", array.spec.name)
