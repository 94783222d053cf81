"""The sizes of each side of a run, and what of it was kept, as `meta.json` tells them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final, get_args

from decision_traces.schema import Dims, Side

_OLD_KEYS: Final = {
    "n_examples": "n_examples",
    "n_layers": "num_layers",
    "n_heads": "num_heads",
    "n_kv_heads": "num_kv_heads",
    "d_head": "head_dim",
    "d_model": "d_model",
    "n_positions": "max_seq_len",
}
"""Where format 1.0 has the sizes of its one side."""

_SEVERAL: Final = ("attention_layers", "cross_layers", "mlp_layers", "layers", "heads")


def meta_sides(meta: Mapping[str, Any]) -> tuple[Side, ...]:
    """Return the sides that a meta of format 1.1 gives the sizes of; none for older runs."""
    sides = meta.get("sides")
    return tuple(side for side in get_args(Side) if side in sides) if isinstance(sides, Mapping) else ()


def dims_of_meta(meta: Mapping[str, Any], side: Side) -> Dims | None:
    """Return the sizes of a side as the meta has them; None where an older meta lacks one of them.

    Raises:
        ValueError: The meta's entry is not that of a `Dims`.
    """
    if side in meta_sides(meta):
        return dims_from_json(meta["sides"][side])
    sizes: dict[str, Any] = {n: size for n, key in _OLD_KEYS.items() if isinstance(size := meta.get(key), int)}
    if len(sizes) < len(_OLD_KEYS):
        return None
    return Dims(**sizes, n_choices=meta.get("n_choices") or 1)


def dims_from_json(value: object) -> Dims:
    """Return the `Dims` that was written as JSON with `dataclasses.asdict`.

    Raises:
        ValueError: It is not an object with these keys and types.
    """
    names = {field.name for field in fields(Dims)}
    if not isinstance(value, Mapping) or not set(value) <= names:
        raise ValueError(f"not the sizes of a side: {value!r}")
    sizes: dict[str, Any] = {name: tuple(size) if isinstance(size, list) else size for name, size in value.items()}
    wrong = [name for name, size in sizes.items() if not _fits(name, size)]
    missing = sorted(name for name in _OLD_KEYS if name not in sizes)
    if wrong or missing:
        raise ValueError("; ".join([f"{name}: {sizes[name]!r}" for name in wrong] + [f"{n}: missing" for n in missing]))
    return Dims(**sizes)


def _fits(name: str, size: object) -> bool:
    numbers = isinstance(size, tuple) and all(type(n) is int and n >= 0 for n in size)
    if name == "positions":
        return numbers or size in {"all", "next", "last"}
    if name in _SEVERAL:
        return numbers or size is None
    return (type(size) is int and size >= 0) or (name == "d_value" and size is None)
