"""Following the residual stream of one layer back from its output to its input, over the record of a forward pass.

Each step is a sum whose partial sums nobody else reads; its stream term is the one that all other terms were computed
from, and those are what was written. A norm (post-LN families) or a factor may stand between sum and next state.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from decision_traces.model.discovery.dataflow import Dataflow, ModuleCall
from decision_traces.model.structure import HookPoint

_MAX_STEPS: Final = 8
_MAX_ALL_STEPS: Final = 256
_BATCH: Final = 2  # rows of the recorded pass


class Refused(Exception):
    """Carries the reason why something could not be found up to where it is known what that was."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the stream.

    Attributes:
        before, after: Roots of the stream's state in front of and behind it.
        writes: Roots of what was added.
        norm: Name of the module between the sum and `after`, if any.
    """

    before: int
    after: int
    writes: tuple[int, ...]
    norm: str | None


class Stream:
    """The residual stream in a record, and the places where its states can be read."""

    def __init__(self, flow: Dataflow, lengths: Mapping[str, int]) -> None:
        """Prepare.

        Args:
            flow: The record.
            lengths: Positions of each argument of the forward pass; they tell what a tensor's axes are.
        """
        self.flow, self._lengths = flow, frozenset(lengths.values())
        self._readers = flow.readers()
        self._nth = self._number_calls()

    def _number_calls(self) -> dict[int, int]:
        """Number every module call among the calls of the same module."""
        seen: dict[str, int] = {}
        numbers = {}
        for call in self.flow.module_calls:
            numbers[id(call)] = seen.get(call.name, 0)
            seen[call.name] = numbers[id(call)] + 1
        return numbers

    # -- places ---------------------------------------------------------------------------------------------

    def point(
        self, call: ModuleCall, side: Literal["input", "output"], key: int | str | None, factor: float = 1.0
    ) -> HookPoint:
        """Return the hook point of one argument or result of a module call."""
        node = (call.inputs if side == "input" else call.outputs)[key]  # type: ignore[index]
        return HookPoint(call.name, side, key, self._nth[id(call)], factor, self._axes(call.shapes[node]))

    def _axes(self, shape: Sequence[int]) -> Literal["bpd", "pbd", "bdp"]:
        if len(shape) != 3 or shape[1] in self._lengths:
            return "bpd"
        if shape[0] in self._lengths and shape[1] == _BATCH:
            return "pbd"
        return "bdp" if shape[0] == _BATCH and shape[2] in self._lengths else "bpd"

    def shape_of(self, point: HookPoint) -> dict[str, int]:
        """Return the sizes of a tapped tensor of the stream by axis: b, p, d."""
        calls = [c for c in self.flow.module_calls if c.name == point.module]
        call = calls[point.call]
        node = (call.inputs if point.side == "input" else call.outputs)[point.key]  # type: ignore[index]
        shape = tuple(call.shapes[node])
        if len(shape) == 2:  # flattened to (batch * position, d_model)
            return {"b": _BATCH, "p": shape[0] // _BATCH, "d": shape[1]}
        if len(shape) != 3:
            raise Refused(f"its layers do not work on one state a position (they return {shape})")
        return dict(zip(point.axes, shape, strict=True))

    def reader_of(self, inside: Sequence[ModuleCall], state: int) -> HookPoint:
        """Return where a module reads (or else returns) a state."""
        for call in inside:
            for key, node in call.inputs.items():
                if self.flow.root(node) == state:
                    return self.point(call, "input", key)
        point = self.output_of(inside, state)
        if point is None:
            raise Refused("no module reads or returns the residual stream after attention has written")
        return point

    def output_of(self, inside: Sequence[ModuleCall], term: int) -> HookPoint | None:
        """Return where a module returns a term, or the term but for a factor; None where none does."""
        factor = 1.0
        while True:
            for call in inside:
                for key, node in call.outputs.items():
                    if self.flow.root(node) == term:
                        return self.point(call, "output", key, factor)
            if self.flow.nodes[term].kind != "scale":
                return None
            factor *= self.flow.nodes[term].factor
            term = self.flow.root(self.flow.nodes[term].parents[0])

    # -- steps ----------------------------------------------------------------------------------------------

    def steps(
        self, source: int | None, result: int, inside: Sequence[ModuleCall], until: int | None = None
    ) -> list[Step]:
        """Return the steps from a layer's input to its output, in the order of computation.

        Args:
            source: Root of the state at the input; None to go on until what is given as `until` is not behind it.
            result: Root of the state at the output.
            inside: The module calls to look at.
            until: A node.

        Raises:
            Refused: The stream is not a chain of sums.
        """
        return list(self._walk(source, result, inside, None if until is None else self.flow.root(until)))[::-1]

    def _walk(self, source: int | None, result: int, inside: Sequence[ModuleCall], until: int | None) -> Iterator[Step]:
        stop = -1 if source is None else source
        for _ in range(_MAX_STEPS if source is not None else _MAX_ALL_STEPS):
            if result == source or (source is None and until not in self.flow.ancestors(result, stop=-1)):
                return
            total, norm = self._sum_behind(result, inside)
            terms = self._terms(total, stop)
            stream = self._stream_term(terms, stop)
            writes = list(terms)
            writes.remove(stream)
            yield Step(stream, result, tuple(writes), norm)
            result = stream
        raise Refused("the residual stream has more steps in one layer than expected")

    def last_state(self, attention: int) -> int:
        """Return the root of the last state behind an attention output that is a sum or a normed sum.

        It is found from the base model's result, going back over norms alone.
        """
        output = self.flow.root(attention)
        for call in self.flow.module_calls:
            for node in call.outputs.values():
                shape = call.shapes[node]
                state = self.flow.root(node)
                if len(shape) != 3 or not call.name or output not in self.flow.ancestors(state, stop=-1):
                    continue
                try:
                    self._sum_behind(state, self.flow.module_calls)
                except Refused:
                    break
                return state
        raise Refused("no module returns a last state of the stream")

    def _sum_behind(self, state: int, inside: Sequence[ModuleCall]) -> tuple[int, str | None]:
        """Return the sum that a state is, or that a factor or a module (a post-LN family's norm) made it from."""
        node = self.flow.nodes[state]
        if node.kind == "add":
            return state, None
        if node.kind == "scale" and self.flow.nodes[self.flow.root(node.parents[0])].kind == "add":
            return self.flow.root(node.parents[0]), None
        for call in inside:
            outputs = {self.flow.root(n) for n in call.outputs.values()}
            inputs = {self.flow.root(n) for n in call.inputs.values()}
            if state in outputs and len(inputs) == 1:
                (total,) = inputs
                if self.flow.nodes[total].kind == "add":
                    return total, call.name
        raise Refused("its residual stream is not a chain of sums (or of normed sums)")

    def _terms(self, total: int, source: int) -> list[int]:
        """Flatten a sum into its terms; a partial sum that something else reads is a term of its own."""
        terms: list[int] = []
        todo = [self.flow.root(p) for p in self.flow.nodes[total].parents]
        while todo:
            term = todo.pop()
            partial = self.flow.nodes[term].kind == "add" and self._readers.get(term, 0) == 1
            if partial and term != source:
                todo += [self.flow.root(p) for p in self.flow.nodes[term].parents]
            else:
                terms.append(term)
        return terms

    def _stream_term(self, terms: list[int], source: int) -> int:
        behind = {t: self.flow.ancestors(t, stop=source) for t in terms}
        streams = {t for t in terms if all(t in behind[other] for other in terms)}
        if len(streams) != 1:
            raise Refused("a sum in its layers has no term that the others were computed from")
        return streams.pop()

    def whole_write(self, step: Step, terms: Sequence[int], total: int) -> int | None:
        """Return the partial sum of just these terms in a step's sum, or the term itself if it is one."""
        if len(terms) == 1:
            return terms[0]
        todo = [total]
        while todo:
            node = todo.pop()
            if self.flow.nodes[node].kind != "add":
                continue
            parents = [self.flow.root(p) for p in self.flow.nodes[node].parents]
            for parent in parents:
                if self.flow.nodes[parent].kind == "add" and sorted(self._terms(parent, step.before)) == sorted(terms):
                    return parent
            todo += [p for p in parents if self._readers.get(p, 0) == 1]
        return None

    def total_of(self, step: Step, inside: Sequence[ModuleCall]) -> int:
        """Return the root of a step's sum."""
        return self._sum_behind(step.after, inside)[0]
