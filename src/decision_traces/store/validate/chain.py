"""Checks that arrays of the same tensors agree: pre_attn[l+1] == post_mlp[l], hidden[l] == pre_attn[l]."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from decision_traces.checks import CheckResult
from decision_traces.errors import DamagedRunError
from decision_traces.format.arrays import Site
from decision_traces.format.stages import DEPTH, EXAMPLE, LAYER, STAGES
from decision_traces.store.reading.arrays import StoredArray
from decision_traces.store.validate.checks import Tally
from decision_traces.store.validate.values import tile_shape


def check_chain(arrays: dict[str, StoredArray], ids: list[str], step: Callable[[int], None]) -> Iterator[CheckResult]:
    """Compare the arrays of a run that `ArraySpec.source` says are the same numbers.

    Args:
        arrays: The run's arrays that opened, by name.
        ids: example_id of each row.
        step: Called with the uncompressed bytes of each comparison.
    """
    for (first, second), same in _repeated(arrays.values()).items():
        yield _compare(arrays[first], arrays[second], same, ids, step)


def _repeated(arrays: Iterable[StoredArray]) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Return for two arrays the indices on their layer axes at which the first repeats a tensor of the second.

    Of several arrays that hold the same tensor, each is paired with the one before it: that says all of it.
    """
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    holder: dict[tuple[str, Site], tuple[str, int]] = {}
    for array in sorted(arrays, key=lambda array: len(STAGES[array.spec.stage].made_of)):
        axis = _layer_axis(array)
        n_layers = 0 if axis is None else array.whole(axis) - (axis == DEPTH)
        for index, number in enumerate(_numbers(array)):
            tensor = (_side(array), array.spec.source(number, n_layers))
            if tensor in holder:
                before, at = holder[tensor]
                found.setdefault((array.spec.name, before), []).append((index, at))
            holder[tensor] = array.spec.name, index
    return found


def _numbers(array: StoredArray) -> tuple[int, ...]:
    axis = _layer_axis(array)
    return (0,) if axis is None else array.numbers(axis)


def _side(array: StoredArray) -> str:
    return "enc_mc" if array.spec.name.startswith("enc_mc") else array.spec.name.split("_")[0]


def _layer_axis(array: StoredArray) -> str | None:
    return next((axis for axis in (LAYER, DEPTH) if axis in array.spec.axes), None)


def _picks(array: StoredArray, layer: int, start: int, stop: int) -> dict[str, int | slice]:
    axis = _layer_axis(array)
    return {EXAMPLE: slice(start, stop)} | ({axis: layer} if axis else {})


def _compare(
    a: StoredArray, b: StoredArray, same: list[tuple[int, int]], ids: list[str], step: Callable[[int], None]
) -> CheckResult:
    i, j = same[0]
    behind = _numbers(a)[i] - _numbers(b)[j]
    shift = "[0]" if _layer_axis(b) is None else "[l+1]" if behind else "[l]"
    name = f"{a.spec.stage}{shift} == {b.spec.stage}" + ("[l]" if _layer_axis(b) else "")
    tally, linked = Tally(name, f"{a.spec.name}, {b.spec.name}", "largest difference"), 0
    if a.shape[0] != b.shape[0] or a.shape[-1] != b.shape[-1]:
        return CheckResult(name, False, where=tally.array, detail=f"shapes {a.shape} and {b.shape}", array=tally.array)
    rows = min(tile_shape(a)[0], tile_shape(b)[0])
    for start in range(0, a.shape[0], rows):
        stop = min(start + rows, a.shape[0])
        for i, j in same:
            if _one_file(a, b, _picks(a, i, start, stop), _picks(b, j, start, stop)):
                linked += 1
                tally.add(0.0, "", ok=True)
                continue
            _compare_rows(a, b, (i, j), (start, stop), ids, tally, step)
    if linked:
        tally.detail += f"; {linked} of {tally.pieces} pieces are one file under two names"
    return tally.result()


def _one_file(a: StoredArray, b: StoredArray, at: dict[str, int | slice], bt: dict[str, int | slice]) -> bool:
    """Return whether two pieces are the same file on disk, read in the same way: then they are equal."""
    keys = [x.identity(x.box(**picks)) for x, picks in ((a, at), (b, bt))]
    return keys[0] is not None and keys[0] == keys[1]


def _compare_rows(
    a: StoredArray,
    b: StoredArray,
    layers: tuple[int, int],
    rows: tuple[int, int],
    ids: list[str],
    tally: Tally,
    step: Callable[[int], None],
) -> None:
    try:
        x, y = (array.read(**_picks(array, layer, *rows)) for array, layer in zip((a, b), layers, strict=True))
    except DamagedRunError:
        # Named by the check that every chunk decodes.
        return
    step(x.nbytes)
    numbers = [_numbers(array)[layer] for array, layer in zip((a, b), layers, strict=True)]
    where = f"{a.spec.name}, layer {numbers[0]}, rows {rows[0]}–{rows[1] - 1}"
    if x.shape == y.shape and np.array_equal(x, y):
        tally.add(0.0, where, ok=True)
        return
    with np.errstate(invalid="ignore"):
        off = np.abs(x.astype(np.float32) - y.astype(np.float32)).reshape(len(x), -1).max(axis=1)
    off = np.where(np.isnan(off), np.float32(np.inf), off)
    worst = int(off.argmax())
    row = rows[0] + worst
    example = ids[row] if row < len(ids) else str(row)
    example = f"{example} (row {row})"
    where = f"{a.spec.name}, example {example}, {_layer_axis(a)} {numbers[0]}; {b.spec.name} {numbers[1]}"
    tally.add(float(off[worst]), where, ok=False)
