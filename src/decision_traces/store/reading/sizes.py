"""The sizes of a run: as its meta says them, or, in runs older than format 1.1, as its arrays have them."""

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

from decision_traces.errors import RunError, UsageError
from decision_traces.format.arrays import ARRAYS, Dims, Side
from decision_traces.format.meta import RunMeta
from decision_traces.format.stages import (
    CHOICE,
    D_HEAD,
    D_MODEL,
    DEPTH,
    EXAMPLE,
    HEAD,
    KV_HEAD,
    LAYER,
    POSITION,
    QUERY,
)
from decision_traces.store.reading.arrays import StoredArray
from decision_traces.store.reading.examples import Examples
from decision_traces.store.reading.selection import SIDES, checked_word


class RunSizes(ABC):
    """Sizes of an open run: of the main side, which is the decoder's where there is one, unless one is named."""

    run_dir: Path
    about: RunMeta

    def __init__(self) -> None:
        self._dims: dict[Side, Dims] = {}

    @abstractmethod
    def stored(self) -> list[str]:
        """Return the names of the arrays the run has, in the schema's order."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Return whether the run has the array of this name."""

    @abstractmethod
    def array(self, name: str) -> StoredArray:
        """Return one array as stored."""

    @property
    @abstractmethod
    def _examples(self) -> Examples: ...

    @property
    def n(self) -> int:
        """Number of examples."""
        return self._main.n_examples if self._main else self._size("n_examples", (EXAMPLE,)) or self._examples.n

    @property
    def T(self) -> int:
        """Token positions, padding included, whatever positions are kept."""
        return self._main.n_positions if self._main else self._known("max_seq_len", (POSITION, QUERY))

    @property
    def L(self) -> int:
        """Number of layers of the model, whatever layers are kept."""
        if self._main:
            return self._main.n_layers
        if self._size(None, (LAYER,)) is None and (depths := self._size(None, (DEPTH,))) is not None:
            return depths - 1
        return self._known("num_layers", (LAYER,))

    @property
    def H(self) -> int:
        """Number of query heads of the model, whatever heads are kept."""
        return self._main.n_heads if self._main else self._known("num_heads", (HEAD,))

    @property
    def n_kv_heads(self) -> int:
        """Number of key and value heads; equals `H` unless queries are grouped."""
        return self._main.n_kv_heads if self._main else self._size("num_kv_heads", (KV_HEAD,)) or self.H

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self._main.d_head if self._main else self._known("head_dim", (D_HEAD,))

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self._main.d_model if self._main else self._known("d_model", (D_MODEL,))

    @property
    def n_choices(self) -> int | None:
        """Choices per example of a multiple-choice run, else None."""
        return self.about.n_choices if self.about.sides else self._size("n_choices", (CHOICE,))

    @property
    def arch(self) -> str:
        """dec, enc or encdec."""
        if self.about.arch:
            return self.about.arch
        sides = {name.split("_")[0] for name in self.stored()}
        return "encdec" if len(sides) > 1 else next(iter(sides), "dec")

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides of the model that the run is about, the main one first."""
        if self.about.sides:
            return tuple(self.about.sides)
        return {"encdec": ("dec", "enc"), "enc": ("enc",)}.get(self.arch, ("dec",))  # type: ignore[return-value]

    def dims(self, side: str = "dec") -> Dims:
        """Return the sizes of one side of the model, and which of its layers, heads and positions are kept.

        Runs older than format 1.1 keep everything; a size that neither their arrays nor their meta have is 0.

        Raises:
            UsageError: The run has no such side.
        """
        name: Side = "dec" if checked_word(side, SIDES, "side") == "dec" else "enc"
        if name not in self.sides:
            raise UsageError(f"This run has no side {name!r}, only {' and '.join(map(repr, self.sides))}.")
        if name not in self._dims:
            self._dims[name] = self._told(name) or self._found(name)
        return self._dims[name]

    def _told(self, side: Side) -> Dims | None:
        """Return the sizes of a side as the meta has them, None before format 1.1."""
        return self.about.sides.get(side)

    def _found(self, side: Side) -> Dims:
        """Return the sizes of a run older than format 1.1."""
        layers, depths = (self._size(None, (axis,), side) for axis in (LAYER, DEPTH))
        if layers is None and depths is not None:
            layers = depths - 1
        heads = self._size("num_heads", (HEAD,), side) or 0
        return Dims(
            n_examples=self.n,
            n_layers=layers or self._size("num_layers", (), side) or 0,
            n_heads=heads,
            n_kv_heads=self._size("num_kv_heads", (KV_HEAD,), side) or heads,
            d_head=self._size("head_dim", (D_HEAD,), side) or 0,
            d_model=self._size("d_model", (D_MODEL,), side) or 0,
            n_positions=self._size("max_seq_len", (POSITION, QUERY), side) or 0,
            n_choices=self.n_choices or 1,
        )

    @cached_property
    def _main(self) -> Dims | None:
        return self.dims(self.sides[0]) if self.about.sides else None

    def _size(self, key: str | None, axes: tuple[str, ...], side: Side | None = None) -> int | None:
        """Return a size from the arrays, which cannot be wrong about it, or else from the meta."""
        for name, spec in ARRAYS.items():
            for axis in set(axes).intersection(spec.axes):
                if side in {None, spec.side} and self.has(name):
                    return self.array(name).size(axis)
        value: int | None = None if key is None else getattr(self.about, key)
        return value

    def _known(self, key: str, axes: tuple[str, ...]) -> int:
        size = self._size(key, axes)
        if size is None:
            raise RunError(f"{self.run_dir} does not say its {key}: neither its arrays nor its meta has it.")
        return size
