"""One structured change of a run folder, told by a seed: what somebody's hand, or an ill-meant one, could have made.

`mutate` changes a file and makes every digest and checksum right again, so that only what the file says is wrong.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from crc32c import crc32c
from support.runs import seal

_NUMBERS: Final = (0, 1, -1, -(10**9), 10**9, 10**30, 1.5, 1e308)
OTHERS: Final = (None, True, "", "x", "1", "1.1", *_NUMBERS, [], {}, [[]], [1], {"a": 1})
"""What a value becomes; `NAN`, `DEEP` and `HALF` stand for text that is no JSON of ours."""
NAN, DEEP, HALF = "@nan@", "@deep@", "@half@"
TEXTS: Final = {f'"{NAN}"': "NaN", f'"{DEEP}"': "[" * 3000 + "]" * 3000, f'"{HALF}"': '"\\ud800"'}
METADATA: Final = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


def mutate(run: Path, seed: int) -> str:
    """Change one file of a run by the seed's choice, make digests right, and say what was done."""
    rng = random.Random(seed)
    kind = rng.choice(("meta", "meta", "manifest", "zarr", "table"))
    if kind == "meta" or (kind == "manifest" and not (run / "manifest.json").exists()):
        return _meta(run, rng)
    if kind == "manifest":
        return _manifest(run, rng)
    files = [p for p in sorted(run.rglob("*")) if p.name in METADATA or p.suffix == ".parquet"]
    path = rng.choice([p for p in files if (p.suffix == ".parquet") == (kind == "table")])
    said = _table(path, rng) if kind == "table" else _json_file(path, rng)
    _sealed(run)
    return f"{path.relative_to(run)}: {said}"


def _sealed(run: Path) -> None:
    if (run / "manifest.json").exists():
        seal(run, json.loads((run / "meta.json").read_text(encoding="utf-8")))


def _meta(run: Path, rng: random.Random) -> str:
    path = run / "meta.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    ours = value.pop("digest", None) is not None
    said = change(value, rng)
    if ours:
        value["digest"] = hashlib.sha256((_text(value)).encode()).hexdigest()
    _write(path, value, rng)
    return f"meta.json: {said}"


def _manifest(run: Path, rng: random.Random) -> str:
    path = run / "manifest.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    said = change(value, rng)
    _write(path, value, rng)
    meta = json.loads((run / "meta.json").read_text(encoding="utf-8"))
    del meta["digest"]
    meta["manifest_crc32c"] = f"{crc32c(path.read_bytes()):08x}"
    meta["digest"] = hashlib.sha256(_text(meta).encode()).hexdigest()
    (run / "meta.json").write_text(_text(meta), encoding="utf-8")
    return f"manifest.json: {said}"


def _json_file(path: Path, rng: random.Random) -> str:
    value = json.loads(path.read_text(encoding="utf-8"))
    said = change(value, rng)
    _write(path, value, rng)
    return said


def _text(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, value: object, rng: random.Random) -> None:
    text = _text(value)
    for word, instead in TEXTS.items():
        text = text.replace(word, instead)
    raw = text.encode()
    if rng.random() < 0.03:
        raw = raw[: rng.randrange(len(raw))]
    elif rng.random() < 0.02:
        raw = b"[" + raw + b"]"
    path.write_bytes(raw)


# -- JSON ---------------------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, Any, tuple[Any, ...]]]:
    """Yield every place of a JSON value: container, key, path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key, (*path, key)
        yield from places(inner, (*path, key))


def change(value: Any, rng: random.Random) -> str:
    """Change a JSON value at one to three random places, upper ones likelier."""
    said = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        there = list(places(value))
        if not there:
            break
        depth = rng.choice((1, 2, 3, 9))
        container, key, path = rng.choice([p for p in there if len(p[2]) <= depth])
        said.append(f"{'/'.join(map(str, path))} {rng.choice(CHANGES)(container, key, there, rng)}")
    return "; ".join(said)


def _delete(container: Any, key: Any, there: list[Any], rng: random.Random) -> str:
    del container[key]
    return "deleted"


def _other(container: Any, key: Any, there: list[Any], rng: random.Random) -> str:
    container[key] = deepcopy(rng.choice((*OTHERS, NAN, DEEP, HALF)))
    return f"is {container[key]!r}"


def _number(container: Any, key: Any, there: list[Any], rng: random.Random) -> str:
    container[key] = rng.choice((-1, 0, 1, 2, 7, 10**6, 10**9, 2**31, 2**63, 10**30))
    return f"is {container[key]!r}"


def _nested(container: Any, key: Any, there: list[Any], rng: random.Random) -> str:
    for _ in range(rng.choice((1, 2, 400))):
        container[key] = [container[key]]
    return "nested"


def _twice(container: Any, key: Any, there: list[Any], rng: random.Random) -> str:
    if isinstance(container, list):
        container.insert(key, container[key])
        return "twice"
    if isinstance(container[key], list):
        container[key] = container[key] * 2
        return "doubled"
    container[f"{key}2"] = container[key]
    return "twice under another name"


def _swap(container: Any, key: Any, there: list[Any], rng: random.Random) -> str:
    other, at, path = rng.choice(there)
    copy = json.loads(json.dumps(other[at]))
    container[key] = copy
    return f"is what {'/'.join(map(str, path))} is"


CHANGES: Final[tuple[Callable[..., str], ...]] = (_delete, _other, _other, _number, _nested, _twice, _swap)


# -- tables -------------------------------------------------------------------------------------------------


def _table(path: Path, rng: random.Random) -> str:
    if rng.random() < 0.05:
        raw = path.read_bytes()
        path.write_bytes(raw[: rng.randrange(len(raw))])
        return "cut short"
    table, said = pq.read_table(path), []
    for _ in range(rng.choice((1, 1, 2))):
        table, what = rng.choice(TABLE_CHANGES)(table, rng.randrange(table.num_columns), rng)
        said.append(what)
        if not table.num_columns:
            break
    pq.write_table(table, path, write_page_checksum=True)
    return "; ".join(said)


def _drop(table: pa.Table, at: int, rng: random.Random) -> tuple[pa.Table, str]:
    return table.remove_column(at), f"without {table.column_names[at]}"


def _put(table: pa.Table, at: int, values: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    return table.set_column(at, table.column_names[at], pa.array(values, kind))


def _retype(table: pa.Table, at: int, rng: random.Random) -> tuple[pa.Table, str]:
    values = rng.choice(
        (
            [str(i) for i in range(table.num_rows)],
            list(range(table.num_rows)),
            [0.5] * table.num_rows,
            [True] * table.num_rows,
            [b"\xff\xfe"] * table.num_rows,
            [[i] for i in range(table.num_rows)],
            [["x"]] * table.num_rows,
            [{"a": 1}] * table.num_rows,
            [10**18] * table.num_rows,
            [-5] * table.num_rows,
            [float("nan")] * table.num_rows,
            [10**9] * table.num_rows,
        )
    )
    return _put(table, at, values), f"{table.column_names[at]} is {values[:1]!r}, …"


def _lengths(table: pa.Table, at: int, rng: random.Random) -> tuple[pa.Table, str]:
    values = table.column(at).to_pylist()
    row = rng.randrange(len(values)) if values else 0
    if values and isinstance(values[row], list):
        values[row] = rng.choice((values[row][:-1], values[row] * 2, [], None, values[row][:1]))
    elif values:
        values[row] = None
    return _put(table, at, values, table.schema.field(at).type), f"{table.column_names[at]}, row {row}: other length"


def _nulls(table: pa.Table, at: int, rng: random.Random) -> tuple[pa.Table, str]:
    kind = rng.choice((table.schema.field(at).type, pa.null()))
    return _put(table, at, [None] * table.num_rows, kind), f"{table.column_names[at]} is null ({kind})"


def _rows(table: pa.Table, at: int, rng: random.Random) -> tuple[pa.Table, str]:
    table = rng.choice((table.slice(0, 0), table.slice(1), pa.concat_tables([table, table])))
    return table, f"{table.num_rows} rows"


def _swapped(table: pa.Table, at: int, rng: random.Random) -> tuple[pa.Table, str]:
    other = rng.randrange(table.num_columns)
    return table.set_column(at, table.column_names[at], table.column(other)), (
        f"{table.column_names[at]} is {table.column_names[other]}"
    )


def _doubled(table: pa.Table, at: int, rng: random.Random) -> tuple[pa.Table, str]:
    return table.append_column(table.schema.field(at), table.column(at)), f"{table.column_names[at]} twice"


def _outside(table: pa.Table, at: int, rng: random.Random) -> tuple[pa.Table, str]:
    """Change single values, keeping the type."""
    by = rng.choice((-1, 10**6, 0, -(10**6), 2**31 - 1))

    def changed(value: Any) -> Any:
        if isinstance(value, list):
            return [changed(v) for v in value]
        return min(max(by, -128), 127) if isinstance(value, int) and not isinstance(value, bool) else value

    values, kind = table.column(at).to_pylist(), table.schema.field(at).type
    whole = [changed(v) for v in values]
    try:
        return _put(table, at, whole, kind), f"{table.column_names[at]}: numbers are {by}"
    except pa.ArrowInvalid:
        return table, "nothing"


TABLE_CHANGES: Final = (_drop, _retype, _retype, _lengths, _nulls, _rows, _swapped, _doubled, _outside)
