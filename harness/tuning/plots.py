"""Plots a sweep in parallel coordinates: a line for each trial, an axis for each key."""

from typing import TYPE_CHECKING

import numpy as np

from harness.job.search import Parameter, SearchSpec, short_names
from harness.training.metrics import new_figure, png

if TYPE_CHECKING:
    import pandas

MISSING = -0.12  # height of a trial's line at the axis of a key that the trial does not use
SPREAD = 0.045  # fraction of the axis over which the lines through one value are spread
Ticks = list[tuple[float, str]]  # height and text of each tick; an axis reaches from 0 to 1


def axis_of(parameter: Parameter, values: "pandas.Series") -> "tuple[pandas.Series, Ticks]":
    """Return the height of each trial's line at a key's axis, and the ticks of the axis.

    The axis of a list has a tick at each value. The axis of a range has ticks at its two ends and
    its middle. Trials with the same value of a list get slightly different heights, so that their
    lines stay visible. The same applies to trials that do not use the key.
    """
    low, high = parameter.low, parameter.high
    if choices := parameter.choices:
        places = np.linspace(0, 1, len(choices)).tolist()
        heights = values.map(dict(zip(choices, places, strict=True))).astype(float)
        ticks = [(place, str(each)) for place, each in zip(places, choices, strict=True)]
    elif parameter.log:
        heights = np.log(values.astype(float) / low) / np.log(high / low)
        ticks = [(0, f"{low:.4g}"), (0.5, f"{(low * high) ** 0.5:.4g}"), (1, f"{high:.4g}")]
    else:
        heights = (values.astype(float) - low) / (high - low or 1)
        ticks = [(0, f"{low:.4g}"), (0.5, f"{(low + high) / 2:.4g}"), (1, f"{high:.4g}")]
    if values.isna().any():
        ticks.append((MISSING, "none"))
    spread = SPREAD * np.linspace(0.5, -0.5, len(values))
    return heights.fillna(MISSING) + spread * (values.isna() | bool(choices)), ticks


def parallel_coordinates(trials: "pandas.DataFrame", search: SearchSpec) -> bytes:
    """Draw each finished trial as a line over the axes of all keys; return a PNG, 480 pixels high.

    The colour shows the score. The worst tenth of the trials share one colour: otherwise a single
    trial that did not learn would make the colours of all other trials almost equal. The best
    trial's line is thick. With hyperband and asha, the number of epochs has an axis too if this
    number differs between trials.

    Args:
        trials: the rows of `scored_trials`, at least one, the best first.
        search: the search space and the objective of these trials.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scores, objective = trials["score"], search.table.objective
    names = short_names([parameter.key for parameter in search.space])
    axes = [(names[each.key], *axis_of(each, trials[each.key])) for each in search.space]
    lengths = tuple(sorted({*trials["epochs"]}))
    if search.continues_trials and len(lengths) > 1:
        axes.append(("epochs", *axis_of(Parameter("epochs", lengths), trials["epochs"])))
    axes.append((objective, *axis_of(Parameter("", low=scores.min(), high=scores.max()), scores)))

    figure, plot = new_figure(size=(max(6.4, 1.2 + 1.05 * len(axes)), 4.8))
    ends = sorted([scores.iloc[0], scores.iloc[-1 - len(scores) // 10]])
    colours = ScalarMappable(Normalize(*ends), "viridis")
    lines = np.stack([heights for _, heights, _ in axes], axis=1)
    for rank in reversed(range(len(lines))):  # draw the best line last, on top
        width, colour = 1.2 if rank else 4, colours.to_rgba(scores.iloc[rank])
        plot.plot(lines[rank], color=colour, linewidth=width)
    for x, (_, _, ticks) in enumerate(axes):
        plot.vlines(x, 0, 1, color="black", linewidth=0.8, zorder=4)
        for height, text in ticks:
            plot.text(
                *(x + 0.06, height, text),
                parse_math=False,  # otherwise a dollar sign would begin a formula
                va="center",
                fontsize=8,
                zorder=5,
                bbox={"facecolor": "white", "alpha": 0.75, "pad": 0.8, "linewidth": 0},
            )
    plot.set_xticks(range(len(axes)), [name.replace("_", "\n") for name, *_ in axes])
    plot.tick_params(axis="x", length=0, labelsize=9)
    plot.set(yticks=[], xlim=(-0.15, len(axes) - 0.45))
    plot.spines[:].set_visible(False)
    best = f"trial {scores.index[0]}, {scores.iloc[0]:.4f}"
    plot.set_title(f"{search.name}: {len(scores)} trials; thick line: the best one ({best})")
    beyond = "min" if search.goal == "max" else "max"
    figure.colorbar(colours, ax=plot, pad=0.01, extend=beyond, label=objective)
    return png(figure)
