"""Checks of the folder itself: meta.json, the files against the manifest, the layout of every array."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import zarr

from decision_traces.errors import DamagedRunError
from decision_traces.schema import (
    ARRAYS,
    INDEX_FILE,
    MANIFEST_FILE,
    META_FILE,
    OUTCOMES_FILE,
    ArraySpec,
    Dims,
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
from decision_traces.store.opened import OpenRun

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
    "attention_rows_sum_to_one": (bool,),
    "arrays": (dict,),
    "block_rows": (int,),
}
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
    wrong = [k for k, types in _TYPES.items() if k in meta and not isinstance(meta[k], types)]
    wrong += [
        k for k, v in (meta["arrays"].items() if isinstance(meta.get("arrays"), dict) else ()) if not _entry(k, v)
    ]
    missing = [k for k in _REQUIRED if ours and k not in meta]
    said = [f"wrong type: {', '.join(wrong)}"] if wrong else []
    said += [f"missing: {', '.join(missing)}"] if missing else []
    yield CheckResult(
        "meta.json complete", not said, float(len(wrong + missing)), META_FILE, "; ".join(said), META_FILE
    )
    arrays = {k: v for k, v in (meta.get("arrays") or {}).items() if k not in wrong} if "arrays" not in wrong else {}
    store.meta = {k: v for k, v in meta.items() if k not in wrong} | ({"arrays": arrays} if "arrays" in meta else {})


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
    failures = list(_file_failures(run, manifest))
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


def _file_failures(run: Path, manifest: Mapping[str, FileRecord]) -> Iterator[CheckResult]:
    known: dict[tuple[int, int], FileRecord] = {}
    for file, expected in manifest.items():
        path = run / file
        if not path.is_file():
            yield CheckResult("files match the manifest", False, where=describe(file), detail="missing", array=file)
            continue
        status = path.stat()
        # Hard links are one file: its bytes are read once.
        inode = (status.st_dev, status.st_ino)
        found = known[inode] if inode in known else known.setdefault(inode, checksum(path))
        if found != expected:
            what = f"{found[0]} bytes instead of {expected[0]}" if found[0] != expected[0] else "CRC-32C differs"
            yield CheckResult("files match the manifest", False, where=describe(file), detail=what, array=file)


def describe(file: str) -> str:
    """Return a file's name with what it holds, for shards: `… (dec_hidden, block 0, depth 3)`."""
    for spec in ARRAYS.values():
        place = file.removeprefix(f"{spec.path}/c/").split("/")
        if file.startswith(f"{spec.path}/c/") and len(place) == len(spec.axes):
            words = [f"{axis} {at}" for axis, at in zip(spec.axes, place, strict=True) if axis in {"layer", "depth"}]
            return f"{file} ({', '.join([spec.name, f'block {place[0]}', *words])})"
    return file


def promised(meta: Mapping[str, Any]) -> set[str]:
    """Return the names of the arrays that a run's meta says are there."""
    capture = tuple(word for word in meta.get("capture") or () if isinstance(word, str))
    side = meta.get("arch")
    if side == "enc" and isinstance(meta.get("n_choices"), int):
        side = "enc_mc"
    of_capture = {s.name for s in arrays_for(side, capture)} if side in {"dec", "enc", "enc_mc"} else set()  # type: ignore[arg-type]
    return of_capture | set(meta.get("arrays") or ())


def check_presence(store: OpenRun) -> Iterator[CheckResult]:
    """Check that every array the meta promises is there."""
    names = promised(store.meta)
    missing = sorted(n for n in names if not store.has(n))
    for name in missing:
        detail = "promised by meta.json and not there"
        yield CheckResult("arrays present", False, where=ARRAYS[name].path, detail=detail, array=name)
    if not missing:
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
    if "format_version" in store.meta and names != spec.axes:
        problems.append(f"dimension names {names}, expected {spec.axes}")
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
    keys = {
        "n_examples": "n_examples",
        "n_layers": "num_layers",
        "n_heads": "num_heads",
        "n_kv_heads": "num_kv_heads",
        "d_head": "head_dim",
        "d_model": "d_model",
        "n_positions": "max_seq_len",
    }
    sizes = {name: size for name, key in keys.items() if isinstance(size := meta.get(key), int)}
    if len(sizes) < len(keys):
        return None
    return Dims(**sizes, n_choices=meta.get("n_choices") or 1).shape(spec.axes)


def check_max_abs(store: OpenRun, array: StoredArray, found: float) -> CheckResult:
    """Check the largest absolute value met against the one the meta recorded at extraction."""
    recorded = (store.meta.get("arrays") or {}).get(array.spec.name, {}).get("max_abs")
    name = "largest value as recorded"
    if not isinstance(recorded, int | float):
        return CheckResult(name, True, found, array.spec.name, "not recorded", array.spec.name)
    # The meta may hold the value before it was rounded to the storage type.
    ok = math.isclose(found, recorded, rel_tol=2**-10, abs_tol=2**-24)
    return CheckResult(name, ok, found, array.spec.name, f"recorded {recorded:.6g}", array.spec.name)
