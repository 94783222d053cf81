"""Checks of the coordinate arrays that tell other readers which layers, heads and positions a run keeps."""

import json
import os
from collections.abc import Iterator
from typing import Final

import numpy as np

from decision_traces.checks import CheckResult
from decision_traces.errors import DamagedRunError
from decision_traces.folders.plain import PlainFolder, refuse_strange_inside
from decision_traces.format.stages import DEPTH, HEAD, KV_HEAD, LAYER, POSITION, QUERY
from decision_traces.store.files.zarr_files import open_zarr
from decision_traces.store.reading.arrays import DECODE_ERRORS, StoredArray
from decision_traces.store.reading.opened import OpenRun
from decision_traces.store.writing.layout import coordinates

_AXES: Final = (LAYER, DEPTH, HEAD, KV_HEAD, POSITION, QUERY)


def check_coordinates(store: OpenRun, array: StoredArray) -> Iterator[CheckResult]:
    """Check that every axis of an array that needs a coordinate has one, and that none is wrong.

    Axes that are simply all of 0, 1, 2, … need none, and most runs have none.
    """
    spec, problems, right = array.spec, list[str](), 0
    needed = {} if array.dims is None else coordinates(spec, array.dims)
    group = store.run_dir / spec.group
    for axis in (a for a in _AXES if a in spec.axes):
        wanted = needed.get(axis, array.numbers(axis))
        if not os.path.lexists(group / axis):
            problems += [f"{spec.group}/{axis} is missing"] if axis in needed else []
            continue
        try:
            refuse_strange_inside(store.run_dir, group / axis)
            stored = open_zarr(PlainFolder(store.run_dir), group / axis)
            if stored.shape != (len(wanted),):
                raise ValueError(f"it has shape {stored.shape}, expected {(len(wanted),)}")
            values = np.asarray(stored[...])
        except (*DECODE_ERRORS, AttributeError, json.JSONDecodeError, DamagedRunError) as error:
            problems.append(f"{spec.group}/{axis} is damaged: {error}")
            continue
        names = getattr(stored.metadata, "dimension_names", None)
        if values.tolist() != list(wanted):
            problems.append(f"{spec.group}/{axis} is {values.tolist()}, the meta gives {list(wanted)}")
        elif names != (axis,):
            problems.append(f"{spec.group}/{axis} has dimension names {names}, expected ({axis!r},)")
        else:
            right += 1
    if problems or right:
        detail = "; ".join(problems) or f"{right} axes"
        yield CheckResult("coordinates", not problems, float(len(problems)), spec.group, detail, spec.name)
