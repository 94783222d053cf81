"""What the shard files of one array are like. Shards know no more of the array than this."""

from dataclasses import dataclass

from decision_traces.store.shards.frames import FrameMaker


@dataclass(frozen=True, slots=True)
class ShardShape:
    """The shape of one array's shard files.

    Attributes:
        shard: Of one file.
        chunk: Of one chunk in it.
        room: Of one row: (slots, width) or (planes, slots, width).
        dtype: Of the numbers.
        rows_each: How many rows stand behind one another at each place of the first axis.
        triangular: Whether no slot holds anything past its own number.
    """

    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    room: tuple[int, ...]
    dtype: str
    rows_each: int
    triangular: bool

    def frame_maker(self) -> FrameMaker:
        """Return what makes the frames of chunks with one row."""
        return FrameMaker(self.room, triangular=self.triangular)
