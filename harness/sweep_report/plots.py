"""The picture of a sweep: the score of each trial over the values of each hyperparameter."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.report.plots import plain
from harness.search_parameters import Parameter
from harness.search_space import SearchSpec, short_names
from harness.sweep_report.importance import Scored
from harness.training.pictures import png, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
WIDTH, HEIGHT = 3.4, 3.2  # inches, of one plot
COLOUR, BEST = "#0072B2", "#D55E00"


def scores_by_key(trials: Sequence[Scored], search: SearchSpec) -> bytes:
    """Draw the finished trials as a PNG: a plot for each key, a point for each trial that has it.

    A star marks the best trial. If trials of a search differ in their number of epochs, that has
    a plot too.

    Args:
        trials: at least one, the best first.
        search: the search they come from.
    """
    from matplotlib.figure import Figure

    keys = [*search.space]
    lengths = sorted({trial.epochs for trial in trials if trial.epochs is not None})
    values = [trial.values for trial in trials]
    if search.continues_trials and len(lengths) > 1:
        keys.append(Parameter("epochs", tuple(lengths)))
        values = [{**trial.values, "epochs": trial.epochs or 0} for trial in trials]
    names = short_names([each.key for each in keys])
    columns = min(COLUMNS, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure((WIDTH * columns, HEIGHT * rows), dpi=100, layout="constrained")
    plots = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for plot, each in zip(plots, keys, strict=False):
        having = [
            (position(each, of_trial[each.key]), trial.score)
            for trial, of_trial in zip(trials, values, strict=True)
            if each.key in of_trial
        ]
        if having:
            plot.scatter(*zip(*having, strict=True), color=COLOUR, alpha=0.6)
        if each.key in values[0]:
            plot.plot(*having[0], "*", color=BEST, markersize=14)
        _label(plot, each, names[each.key])
    for plot in plots[len(keys) :]:
        plot.set_visible(False)
    best, score = trials[0].trial, trials[0].score
    figure.suptitle(
        plain(
            f"{search.name}: {search.table.objective} of {len(trials)} finished "
            f"trial{'s' if len(trials) > 1 else ''}, the star is the best ({best}, {score:.4f})"
        )
    )
    return png(figure)


def position(key: Parameter, value: bool | int | float | str) -> float:
    """Where a value stands on the axis of its key: those of a list are evenly spaced."""
    return key.choices.index(value) if key.choices else float(value)


def _label(plot: "Axes", key: Parameter, name: str) -> None:
    plot.set_xlabel(plain(name))
    plot.grid(alpha=0.3)
    if key.choices:
        labels = [plain(shortened(str(choice), 12)) for choice in key.choices]
        plot.set_xticks(range(len(labels)), labels)
        plot.set_xlim(-0.5, len(labels) - 0.5)
    elif key.log:
        plot.set_xscale("log")
