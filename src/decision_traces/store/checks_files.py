"""Checks of the folder itself: meta.json, the files against the manifest, the layout of every array."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import zarr

from decision_traces.errors import DamagedRunError
from decision_traces.schema import (
    ARRAYS,
    CROSS_STAGES,
    D_HEAD,
    D_VALUE,
    DEPTH,
    INDEX_FILE,
    LAYER,
    MANIFEST_FILE,
    META_FILE,
    OUTCOMES_FILE,
    ArraySpec,
    Prefix,
    Side,
    arrays_for,
)
from decision_traces.store.arrays import DECODE_ERRORS, StoredArray
from decision_traces.store.checks import NAMED_FAILURES, CheckResult
from decision_traces.store.folder import (
    FileRecord,
    checksum,
    meta_problem,
    read_manifest,
    run_files,
    sealed_problem,
)
from decision_traces.store.layout import layer_numbers
from decision_traces.store.opened import OpenRun
from decision_traces.store.sides import dims_from_json, dims_of_meta, meta_sides

_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "run_id": (str,),
    "model": (str,),
    "arch": (str,),
    "objective": (str,),
    "n_examples": (int,),
    "n_choices": (int, type(None)),
    "num_layers": (int,),
    "num_heads": (int,),
    "head_dim": (int,),
    "dtype": (str,),
    "capture": (list,),
    "num_kv_heads": (int,),
    "d_model": (int,),
    "vocab_size": (int,),
    "attention_rows_sum_to_one": (bool, dict),
    "sides": (dict,),
    "selection": (dict,),
    "missing": (dict,),
    "arrays": (dict,),
    "block_rows": (int,),
}
_FIRST_FORMAT: Final = "1.0"  # had one side, kept everything of it, and called the width of values d_head
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
    """Check meta.json against its digest and its keys; take out those of a wrong type."""
    meta, ours = store.meta, "format_version" in store.meta
    problem = meta_problem(store.run_dir)
    detail = problem or ("matches its digest" if ours else "no digest: written by an older tool")
    yield CheckResult("meta.json unchanged", problem is None, where=META_FILE, detail=detail, array=META_FILE)
    trusted = not meta.get("uncertified")
    detail = "as its first rows were checked" if trusted else "kept with --uncertified though its certificate failed"
    yield CheckResult("run is certified", trusted, where=META_FILE, detail=detail, array=META_FILE)
    wrong = [k for k, types in _TYPES.items() if k in meta and not isinstance(meta[k], types)]
    wrong += [k for k, v in _entries(meta, "arrays") if not _entry(k, v)]
    wrong += [f"sides, {name}" for name, value in _entries(meta, "sides") if not _side(name, value)]
    required = (*_REQUIRED, *(("sides",) if meta.get("format_version") != _FIRST_FORMAT else ()))
    missing = [k for k in required if ours and (k not in meta or (k == "sides" and not meta[k]))]
    said = [f"wrong type: {', '.join(wrong)}"] if wrong else []
    said += [f"missing: {', '.join(missing)}"] if missing else []
    yield CheckResult(
        "meta.json complete", not said, float(len(wrong + missing)), META_FILE, "; ".join(said), META_FILE
    )
    arrays = {k: v for k, v in (meta.get("arrays") or {}).items() if k not in wrong} if "arrays" not in wrong else {}
    sides = {k: v for k, v in _entries(meta, "sides") if f"sides, {k}" not in wrong}
    kept = {k: v for k, v in meta.items() if k not in {*wrong, "arrays", "sides"}}
    store.meta = kept | ({"arrays": arrays} if "arrays" in meta else {}) | ({"sides": sides} if sides else {})


def _entries(meta: Mapping[str, Any], key: str) -> Iterable[tuple[str, Any]]:
    return meta[key].items() if isinstance(meta.get(key), dict) else ()


def _side(name: str, value: object) -> bool:
    try:
        dims_from_json(value)
    except ValueError:
        return False
    return name in {"dec", "enc"}


def _entry(name: str, value: object) -> bool:
    shape = value.get("shape") if isinstance(value, dict) else None
    return name in ARRAYS and isinstance(shape, list) and all(isinstance(n, int) for n in shape)


def check_index(run: Path) -> Iterator[CheckResult]:
    """Check index.json, where there is one, against its digest; indexing writes it anew."""
    path = run / INDEX_FILE
    if path.is_file():
        problem = sealed_problem(path)
        yield CheckResult(
            "index.json unchanged", problem is None, where=INDEX_FILE, detail=problem or "", array=INDEX_FILE
        )


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
    run, meta = store.run_dir, store.meta
    known: dict[tuple[int, int], FileRecord] = {}
    for file, expected in manifest.items():
        path = run / file
        if not path.is_file():
            where = describe(file, meta)
            yield CheckResult("files match the manifest", False, where=where, detail="missing", array=file)
            continue
        status = path.stat()
        # Hard links are one file: its bytes are read once.
        inode = (status.st_dev, status.st_ino)
        found = known[inode] if inode in known else known.setdefault(inode, checksum(path))
        if found != expected:
            what = f"{found[0]} bytes instead of {expected[0]}" if found[0] != expected[0] else "CRC-32C differs"
            yield CheckResult("files match the manifest", False, where=describe(file, meta), detail=what, array=file)


def describe(file: str, meta: Mapping[str, Any]) -> str:
    """Return a file's name with what it holds, for shards: `… (dec_hidden, block 0, depth 3)`."""
    for spec in ARRAYS.values():
        place = file.removeprefix(f"{spec.path}/c/").split("/")
        if file.startswith(f"{spec.path}/c/") and len(place) == len(spec.axes):
            words = [
                f"{axis} {_number(spec, at, meta)}"
                for axis, at in zip(spec.axes, place, strict=True)
                if axis in {LAYER, DEPTH}
            ]
            return f"{file} ({', '.join([spec.name, f'block {place[0]}', *words])})"
    return file


def _number(spec: ArraySpec, place: str, meta: Mapping[str, Any]) -> str:
    """Return the model's own number of a layer at a place on the layer axis, where the meta tells it."""
    if spec.side not in meta_sides(meta) or not place.isdecimal():
        return place
    numbers = layer_numbers(spec, dims_from_json(meta["sides"][spec.side]))
    return str(numbers[int(place)]) if int(place) < len(numbers) else place


def promised(meta: Mapping[str, Any]) -> set[str]:
    """Return the names of the arrays that a run's meta says are there."""
    capture = tuple(word for word in meta.get("capture") or () if isinstance(word, str))
    arch = meta.get("arch")
    told: dict[Any, tuple[Side, ...]] = {"dec": ("dec",), "enc": ("enc",), "encdec": ("dec", "enc")}
    sides = meta_sides(meta) or told.get(arch, ())
    choices = isinstance(meta.get("n_choices"), int)
    prefixes: list[Prefix] = ["enc_mc" if side == "enc" and choices else side for side in sides]
    specs = [spec for prefix in prefixes for spec in arrays_for(prefix, capture)]
    of_capture = {s.name for s in specs if arch == "encdec" or s.stage not in CROSS_STAGES}
    return (of_capture | set(meta.get("arrays") or ())) - set(meta.get("missing") or ())


def check_presence(store: OpenRun) -> Iterator[CheckResult]:
    """Check that every array the meta promises is there, and none that it denies."""
    meta, names = store.meta, promised(store.meta)
    found = [(n, "promised by meta.json and not there") for n in sorted(names) if not store.has(n)]
    sides = meta_sides(meta)
    for spec in (ARRAYS[name] for name in store.stored()):
        if spec.name in (meta.get("missing") or ()):
            found.append((spec.name, "there, though meta.json says that it is missing"))
        elif spec.stage in CROSS_STAGES and meta.get("arch") != "encdec":
            found.append((spec.name, "there, though only encoder-decoders have cross-attention"))
        elif sides and spec.side not in sides:
            found.append((spec.name, f"there, though meta.json has no side {spec.side}"))
    for name, detail in found:
        yield CheckResult("arrays present", False, where=ARRAYS[name].path, detail=detail, array=name)
    if not found:
        yield CheckResult("arrays present", True, 0.0, detail=f"{len(names)} arrays")


def check_layout(store: OpenRun, array: StoredArray, n_rows: int | None) -> CheckResult:
    """Check shape, dtype, dimension names and the group of one array against meta and tokens."""
    spec, problems = array.spec, []
    expected = expected_shape(store.meta, spec)
    if expected is not None and array.shape != expected:
        problems.append(f"shape {array.shape}, the meta gives {expected}")
    if n_rows is not None and array.shape[0] != n_rows:
        problems.append(f"{array.shape[0]} rows, the token table has {n_rows}")
    if store.meta.get("dtype", array.dtype.name) != array.dtype.name:
        problems.append(f"dtype {array.dtype}, the meta says {store.meta['dtype']}")
    names = getattr(array.zarr.metadata, "dimension_names", None)
    axes = spec.axes
    if store.meta.get("format_version") == _FIRST_FORMAT:
        axes = tuple(D_HEAD if axis == D_VALUE else axis for axis in axes)
    if "format_version" in store.meta and names != axes:
        problems.append(f"dimension names {names}, expected {axes}")
    rows = store.meta.get("block_rows")
    if rows is not None and array.files_shape[0] != rows:
        problems.append(f"{array.files_shape[0]} rows per file, the meta says {rows}")
    try:
        zarr.open_group(store.run_dir / spec.group, mode="r")
    except (*DECODE_ERRORS, AttributeError, json.JSONDecodeError) as error:
        problems.append(f"the group {spec.group} does not open: {error}")
    detail = "; ".join(problems) or f"{array.dtype} {array.shape}"
    return CheckResult("layout", not problems, float(len(problems)), spec.path, detail, spec.name)


def expected_shape(meta: Mapping[str, Any], spec: ArraySpec) -> tuple[int, ...] | None:
    """Return the shape that the sizes in the meta give, or None where an older meta lacks one of them."""
    dims = dims_of_meta(meta, spec.side)
    return None if dims is None else dims.shape(spec)


def check_max_abs(store: OpenRun, array: StoredArray, found: float) -> CheckResult:
    """Check the largest absolute value met against the one the meta recorded at extraction."""
    recorded = (store.meta.get("arrays") or {}).get(array.spec.name, {}).get("max_abs")
    name = "largest value as recorded"
    if not isinstance(recorded, int | float):
        return CheckResult(name, True, found, array.spec.name, "not recorded", array.spec.name)
    # The meta may hold the value before it was rounded to the storage type.
    ok = math.isclose(found, recorded, rel_tol=2**-10, abs_tol=2**-24)
    return CheckResult(name, ok, found, array.spec.name, f"recorded {recorded:.6g}", array.spec.name)
