"""Charts as SVG, by matplotlib (`benchmarks/requirements.txt`); without it there are none, and the run says so."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .contenders import CONTENDERS, OURS
from .report import MEASURES, Report, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MISSING = "matplotlib is not installed (`make bench` installs it)."
CHARTED = ("noops", "kibibytes", "call-p50", "spawns-done", "large", "start", "batches", "web")
OURS_COLOUR, OTHER_COLOUR = "#1f6feb", "#9aa4b1"
SVG: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "nomadfn", "font.size": 9}


def draw(report: Report, path: Path) -> bool:
    """One panel a measurement, the contenders as bars on a logarithmic scale. False without matplotlib."""
    shown = [name for name in CHARTED if name in report.results]
    if not _available() or not shown:
        return False
    rows = (len(shown) + 1) // 2
    figure, axes = _figure(rows, 2, 1.0 + 1.9 * rows)
    for panel, name in zip(axes, shown, strict=False):
        _bars(panel, report, name)
    for panel in axes[len(shown) :]:
        panel.remove()
    _save(figure, path)
    return True


def _bars(panel: Axes, report: Report, name: str) -> None:
    result = report.results[name]
    contenders = [one for one in reversed(CONTENDERS) if one in result.values]
    medians = [result.median(one) or 0.0 for one in contenders]
    colours = [OURS_COLOUR if one == OURS else OTHER_COLOUR for one in contenders]
    bars = panel.barh([CONTENDERS[one].title for one in contenders], medians, color=colours)
    panel.bar_label(bars, [number(median) for median in medians], padding=3)
    panel.set_xscale("log")
    panel.set_xlim(min(medians) / 3, max(medians) * 6)
    panel.set_title(f"{MEASURES[name][0]} ({MEASURES[name][1]})", fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)


@dataclass(frozen=True)
class Panel:
    """Lines over one size: what is plotted, and (size, value) a line."""

    title: str
    size: str
    lines: dict[str, Sequence[tuple[float, float]]]


def draw_growth(panels: Sequence[Panel], path: Path) -> bool:
    """Cost against size, both logarithmic. False without matplotlib."""
    if not _available():
        return False
    rows = (len(panels) + 1) // 2
    figure, axes = _figure(rows, 2, 2.6 * rows)
    for axis, panel in zip(axes, panels, strict=False):
        for label, points in panel.lines.items():
            axis.plot([size for size, _ in points], [value for _, value in points], marker="o", label=label)
        axis.set_xscale("log")
        axis.set_yscale("log")
        low, high = (f(value for points in panel.lines.values() for _, value in points) for f in (min, max))
        axis.set_ylim(min(low / 2, high / 20), high * 2)
        axis.set_xlabel(panel.size)
        axis.set_title(panel.title, fontsize=9)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in axes[len(panels) :]:
        axis.remove()
    _save(figure, path)
    return True


def _available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _figure(rows: int, columns: int, height: float) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update(SVG)
    figure, axes = pyplot.subplots(rows, columns, figsize=(11, height), squeeze=False, layout="constrained")
    return figure, list(axes.flat)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
