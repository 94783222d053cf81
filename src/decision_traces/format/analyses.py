"""What each analysis leaves in a run: its folder, its files, the command that makes it, the panels that show it.

Only this module names these files. Nothing here computes anything: see `analysis.registry`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

ANALYSIS_DIR: Final = "analysis"
RECORD_FILE: Final = "record.json"

LENS_TABLE: Final = "lens.parquet"
DEPTH_TABLE: Final = "depth.parquet"
CHOICES_TABLE: Final = "choice_race.parquet"
LENS_GRID: Final = "lens.zarr"
WORDS_TABLE: Final = "words.parquet"
LENS_PICTURE: Final = "lens_trajectories.png"
CHOICES_PICTURE: Final = "choice_race.png"
ATTRIBUTION_TABLE: Final = "attribution.parquet"
CONTRIBUTION_GRID: Final = "contributions.zarr"
ATTRIBUTION_PICTURE: Final = "attribution.png"
HEADS_TABLE: Final = "attention_heads.parquet"
HEADS_PICTURE: Final = "attention_heads.png"
COMPARISON_TABLE: Final = "compare.parquet"
COMPARISON_PICTURE: Final = "compare.png"
PROBE_TABLE: Final = "probe.parquet"
PROBE_PICTURE: Final = "probe.png"
CALIBRATION_TABLE: Final = "calibration.parquet"
CALIBRATION_PICTURE: Final = "calibration.png"
BY_TABLE: Final = "compare_by.parquet"
BY_PICTURE: Final = "compare_by.png"
BY_PROBE_TABLE: Final = "probe_by.parquet"
BY_PROBE_PICTURE: Final = "probe_by.png"


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel of the page that shows a result.

    Attributes:
        name: The page's word for it.
        artifact: What it shows.
        not_yet: Its text where that has not been computed.
    """

    name: str
    artifact: str
    not_yet: str


@dataclass(frozen=True, slots=True)
class ResultSpec:
    """What an analysis leaves in a run.

    Attributes:
        name: Its folder in `analysis/`.
        does: What it is for, as lists of commands say it.
        artifacts: Files and groups that its folder may hold beside its `record.json`.
        command: The words that make it, behind `decision-traces`.
        panels: Where the page shows it.
    """

    name: str
    does: str
    artifacts: tuple[str, ...]
    command: str
    panels: tuple[Panel, ...] = ()


_SPECS: Final = (
    ResultSpec(
        "lens",
        "what a model would say after each layer, and when its decisions stand",
        (LENS_TABLE, DEPTH_TABLE, CHOICES_TABLE, LENS_GRID, WORDS_TABLE, LENS_PICTURE, CHOICES_PICTURE),
        "lens",
        (
            Panel("lens", LENS_GRID, "The lens has not been computed for this run yet."),
            Panel("by_choice", CHOICES_TABLE, "The choices have not been followed through the layers yet."),
        ),
    ),
    ResultSpec(
        "attribution",
        "which layers, MLPs and heads of a decoder decide for the true token",
        (ATTRIBUTION_TABLE, CONTRIBUTION_GRID, WORDS_TABLE, ATTRIBUTION_PICTURE),
        "attribution",
        (Panel("contributions", CONTRIBUTION_GRID, "Contributions have not been computed for this run yet."),),
    ),
    ResultSpec("attention", "what every attention head looks at", (HEADS_TABLE, HEADS_PICTURE), "attention"),
    ResultSpec(
        "compare",
        "right against wrong: certainty, heads, decision depth, a probe per layer, calibration",
        (
            COMPARISON_TABLE,
            HEADS_TABLE,
            PROBE_TABLE,
            CALIBRATION_TABLE,
            COMPARISON_PICTURE,
            HEADS_PICTURE,
            PROBE_PICTURE,
            CALIBRATION_PICTURE,
        ),
        "compare",
    ),
    ResultSpec(
        "compare_by",
        "groups of examples against one another, by a column of the token table",
        (BY_TABLE, BY_PROBE_TABLE, BY_PICTURE, BY_PROBE_PICTURE),
        "compare --by COLUMN",
    ),
)
RESULTS: Final[Mapping[str, ResultSpec]] = {spec.name: spec for spec in _SPECS}
"""What may lie in `analysis/`, by the name of its folder."""

PANELS: Final[Mapping[str, tuple[ResultSpec, Panel]]] = {
    panel.name: (spec, panel) for spec in _SPECS for panel in spec.panels
}
"""The page's panels that show results, each with the analysis that makes what it shows."""
