"""What a comparison gives of a run."""

from collections.abc import Mapping
from dataclasses import dataclass

from decision_traces.analysis.attention.statistics import HeadMeans
from decision_traces.analysis.comparison.calibration import Calibration
from decision_traces.analysis.comparison.correlation import Correlation
from decision_traces.analysis.comparison.groups import GroupComparison
from decision_traces.analysis.probing.correctness import ProbeResult
from decision_traces.analysis.probing.label import LabelProbe


@dataclass(frozen=True, slots=True)
class Comparison:
    """How right answers differ from wrong ones, or the groups of a column from one another.

    Attributes:
        title: What was compared.
        by: The column; None where right answers with wrong ones.
        sections: Kind of figure to how the groups differ in it, or how it goes with the column's numbers.
        left_out: What could not be compared, to why.
        calibration: Whether the model is as often right as it is sure, of right against wrong.
        heads: What heads look at over the whole run, of right against wrong.
        probe: Whether the states of a layer tell the groups apart.
    """

    title: str
    by: str | None
    sections: Mapping[str, GroupComparison | Correlation]
    left_out: Mapping[str, str]
    calibration: Calibration | None = None
    heads: HeadMeans | None = None
    probe: ProbeResult | LabelProbe | None = None
