"""The picture of a sweep: each trial as a line over all hyperparameters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.job.search_parameters import Parameter, Value
from harness.job.search_space import SearchSpec, short_names
from harness.sweep_report.importance import Scored
from harness.training.pictures import new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize


MISSING = -0.12  # height of a trial on the axis of a key that it does not have
SPREAD = 0.045  # of the lines through one value of a list, as a share of the axis
COLOURS = "viridis"


@dataclass(frozen=True)
class Axis:
    """A vertical axis: the height of each value, and its labels."""

    name: str
    ticks: tuple[tuple[float, str], ...]  # height in 0..1, text
    choices: tuple[Value, ...] = ()  # of a list
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def height(self, value: Value | None) -> float:
        """The height of a value, 0 at the bottom and 1 at the top."""
        if value is None:
            return MISSING
        if self.choices:
            return _part(self.choices.index(value), len(self.choices))
        return _share(float(value), self.low, self.high, log=self.log)


def _part(index: int, of: int) -> float:
    return index / (of - 1) if of > 1 else 0.5


def _share(value: float, low: float, high: float, *, log: bool) -> float:
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low) if high > low else 0.5


def axis_of(dimension: Parameter, name: str) -> Axis:
    """The axis of a key: every value of a list; the ends of a range and its middle."""
    if dimension.choices:
        return _list_axis(name, dimension.choices)
    return _range_axis(name, dimension.low, dimension.high, log=dimension.log)


def _list_axis(name: str, values: Sequence[Value]) -> Axis:
    count = len(values)
    ticks = tuple((_part(index, count), str(value)) for index, value in enumerate(values))
    return Axis(name, ticks, choices=tuple(values))


def _range_axis(name: str, low: float, high: float, *, log: bool = False) -> Axis:
    values = (low, math.sqrt(low * high) if log else (low + high) / 2, high)
    ticks = tuple((_share(v, low, high, log=log), f"{v:.4g}") for v in values)
    return Axis(name, ticks, low=low, high=high, log=log)


def parallel_coordinates(trials: Sequence[Scored], search: SearchSpec) -> bytes:
    """Draw each finished trial as a line over the axes of all keys, as a PNG of 480 pixels' height.

    The colour shows the score, with one colour for the worst tenth; the best trial's line is thick.
    If trials of a search differ in their number of epochs, it gets an axis too.

    Args:
        trials: at least one, the best first.
        search: the search they come from.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable

    names = short_names([dimension.key for dimension in search.space])
    axes = [axis_of(dimension, names[dimension.key]) for dimension in search.space]
    columns = [[trial.values.get(d.key) for trial in trials] for d in search.space]
    lengths = sorted({trial.epochs for trial in trials if trial.epochs is not None})
    if search.continues_trials and len(lengths) > 1:
        axes.append(_list_axis("epochs", lengths))
        columns.append([trial.epochs for trial in trials])
    scores = [trial.score for trial in trials]
    axes.append(_range_axis(search.table.objective, min(scores), max(scores)))
    columns.append([*scores])

    figure, plot = new_figure(size=(max(6.4, 1.2 + 1.05 * len(axes)), 4.8))
    norm = _norm(scores, search)
    lines = list(zip(*map(_heights, axes, columns), strict=True))
    for index in reversed(range(len(trials))):  # the best is drawn last, over the others
        is_best = index == 0
        plot.plot(
            range(len(axes)),
            lines[index],
            color=colormaps[COLOURS](norm(scores[index])),
            linewidth=4 if is_best else 1.2,
            alpha=1 if is_best else 0.75,
            solid_joinstyle="round",
            zorder=3 if is_best else 2,
        )
    _draw_axes(plot, axes, columns)
    plot.set_title(
        f"{search.name}: {len(trials)} finished trial{'s' if len(trials) > 1 else ''}, "
        f"the thick one is the best ({trials[0].trial}, {scores[0]:.4f})"
    )
    end: Any = "neither"
    if len(trials) >= 10:  # the worst tenth lies beyond it
        end = "min" if search.goal == "max" else "max"
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=plot, pad=0.01, extend=end)
    bar.set_label(search.table.objective)
    return png(figure)


def _heights(axis: Axis, values: Sequence[Value | None]) -> list[float]:
    """The heights of all trials on an axis; lines through one value of a list are spread out."""
    heights = [axis.height(value) for value in values]
    if len(values) < 2:
        return heights
    last = len(values) - 1
    return [
        height + SPREAD * (0.5 - index / last) if axis.choices or height == MISSING else height
        for index, height in enumerate(heights)
    ]


def _draw_axes(plot: "Axes", axes: Sequence[Axis], columns: Sequence[Sequence[Any]]) -> None:
    for x, (axis, values) in enumerate(zip(axes, columns, strict=True)):
        plot.plot([x, x], [0, 1], color="black", linewidth=0.8, zorder=4)
        missing = [(MISSING, "none")] if None in values else []
        for height, text in (*axis.ticks, *missing):
            plot.plot([x, x + 0.04], [height, height], color="black", linewidth=0.8)
            plot.text(
                *(x + 0.06, height, text),
                parse_math=False,  # a dollar sign is one
                va="center",
                fontsize=8,
                zorder=5,
                bbox={"facecolor": "white", "alpha": 0.75, "pad": 0.8, "linewidth": 0},
            )
    plot.set_xticks(range(len(axes)), [axis.name.replace("_", "\n") for axis in axes])
    plot.tick_params(axis="x", length=0, labelsize=9)
    plot.set_yticks([])
    plot.set_xlim(-0.15, len(axes) - 0.45)
    plot.set_ylim((MISSING if any(None in values for values in columns) else 0) - 0.05, 1.05)
    plot.spines[:].set_visible(False)


def _norm(scores: Sequence[float], search: SearchSpec) -> "Normalize":
    """Maps scores to colours. The worst tenth share a colour.

    Otherwise one trial that failed to learn would leave a single colour for all others.
    """
    from matplotlib.colors import Normalize

    in_order = sorted(scores, reverse=search.goal == "min")  # the worst first
    worst, best = in_order[len(scores) // 10], in_order[-1]
    return Normalize(min(worst, best), max(worst, best))
