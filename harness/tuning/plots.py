"""Plots a sweep in parallel coordinates: a line for each trial, an axis for each key."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from harness.job.search import Parameter, SearchSpec, short_names
from harness.training.pictures import new_figure, png

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

MISSING = -0.12  # height of a trial's line at the axis of a key that the trial does not use
SPREAD = 0.045  # fraction of the axis over which the lines through one value are spread
COLOURS = "viridis"


class Axis(NamedTuple):
    """A vertical axis of the plot; heights are 0 at its bottom and 1 at its top."""

    name: str
    heights: np.ndarray  # height of each trial's line at the axis, `[num_trials]`
    ticks: Sequence[tuple[float, str]]  # height and text of each tick


def axis_of(parameter: Parameter, name: str, values: "pandas.Series") -> Axis:
    """Make a key's axis. A list has a tick at each value, a range at its two ends and its middle.

    Lines through the same value of a list are spread a little, as are the lines of trials that do
    not use the key.
    """
    if choices := parameter.choices:
        places = np.linspace(0, 1, len(choices)).tolist() if choices[1:] else [0.5]
        heights = values.map(dict(zip(choices, places, strict=True))).astype(float)
        ticks = [(place, str(each)) for place, each in zip(places, choices, strict=True)]
        is_spread = np.full(len(values), True)
    else:
        heights, ticks = _range(values, parameter.low, parameter.high, log=parameter.log)
        is_spread = values.isna().to_numpy()
    if values.isna().any():
        ticks.append((MISSING, "none"))
    spread = SPREAD * np.linspace(0.5, -0.5, len(values)) if values.size > 1 else 0
    return Axis(name, heights.fillna(MISSING).to_numpy() + spread * is_spread, ticks)


def _range(
    values: "pandas.Series", low: float, high: float, *, log: bool = False
) -> "tuple[pandas.Series, list[tuple[float, str]]]":
    numbers = values.astype(float)
    if low == high:
        return 0.5 + 0 * numbers, [(0.5, f"{low:.4g}")]
    if log:
        middle, heights = (low * high) ** 0.5, np.log(numbers / low) / np.log(high / low)
    else:
        middle, heights = (low + high) / 2, (numbers - low) / (high - low)
    return heights, [(0, f"{low:.4g}"), (0.5, f"{middle:.4g}"), (1, f"{high:.4g}")]


def parallel_coordinates(trials: "pandas.DataFrame", search: SearchSpec) -> bytes:
    """Draw each finished trial as a line over the axes of all keys; return a PNG, 480 pixels high.

    The colour shows the score. The worst tenth of the trials share one colour: otherwise a single
    trial that did not learn would make the colours of all other trials almost equal. The best
    trial's line is thick. With hyperband and asha, the number of epochs has an axis if not all
    trials have the same number.

    Args:
        trials: the rows of `scored_trials`, at least one, the best first.
        search: the search of these trials.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    names = short_names([parameter.key for parameter in search.space])
    axes = [axis_of(each, names[each.key], trials[each.key]) for each in search.space]
    lengths = sorted({*trials["epochs"]})
    if search.continues_trials and len(lengths) > 1:
        axes.append(axis_of(Parameter("epochs", tuple(lengths)), "epochs", trials["epochs"]))
    scores, goal = trials["score"], search.goal
    axes.append(Axis(search.table.objective, *_range(scores, scores.min(), scores.max())))

    figure, plot = new_figure(size=(max(6.4, 1.2 + 1.05 * len(axes)), 4.8))
    num_worst = len(scores) // 10
    worst = scores.iloc[-1 - num_worst]
    norm = Normalize(min(worst, scores.iloc[0]), max(worst, scores.iloc[0]))
    lines = np.stack([axis.heights for axis in axes], axis=1)
    plot.plot(lines[0], color=colormaps[COLOURS](norm(scores.iloc[0])), linewidth=4, zorder=3)
    for line, score in zip(lines[:0:-1], scores.iloc[:0:-1], strict=True):  # best on top
        plot.plot(line, color=colormaps[COLOURS](norm(score)), linewidth=1.2, alpha=0.75)
    _draw_axes(plot, axes)
    plot.set_title(
        f"{search.name}: {len(scores)} finished trials, the thick line is the best one "
        f"(trial {scores.index[0]}, {scores.iloc[0]:.4f})"
    )
    beyond = ("min" if goal == "max" else "max") if num_worst else "neither"
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=plot, pad=0.01, extend=beyond)
    bar.set_label(search.table.objective)
    return png(figure)


def _draw_axes(plot: "Axes", axes: Sequence[Axis]) -> None:
    for x, axis in enumerate(axes):
        plot.plot([x, x], [0, 1], color="black", linewidth=0.8, zorder=4)
        for height, text in axis.ticks:
            plot.plot([x, x + 0.04], [height, height], color="black", linewidth=0.8)
            plot.text(
                *(x + 0.06, height, text),
                parse_math=False,  # otherwise a dollar sign would begin a formula
                va="center",
                fontsize=8,
                zorder=5,
                bbox={"facecolor": "white", "alpha": 0.75, "pad": 0.8, "linewidth": 0},
            )
    plot.set_xticks(range(len(axes)), [axis.name.replace("_", "\n") for axis in axes])
    plot.tick_params(axis="x", length=0, labelsize=9)
    plot.set_yticks([])
    plot.set_xlim(-0.15, len(axes) - 0.45)
    plot.set_ylim(min(0, *(height for axis in axes for height, _ in axis.ticks)) - 0.05, 1.05)
    plot.spines[:].set_visible(False)
