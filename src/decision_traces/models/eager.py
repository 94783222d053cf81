"""Running a model's attention eagerly for a while, and then as before."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def eagerly(model: nn.Module) -> Iterator[bool]:
    """Switch a model to eager attention inside the block; yields whether that is possible."""
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    switch: Any = getattr(model, "set_attn_implementation", None)
    if before == "eager" or before is None or switch is None:
        yield before == "eager"
        return
    try:
        switch("eager")
    except ValueError:
        yield False
        return
    try:
        yield True
    finally:
        switch(before)
