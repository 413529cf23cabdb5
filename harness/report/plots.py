"""Draws the plots of a report. A job has the same colour, line and marker in all plots.

Colour-blind people can distinguish the colours. Line styles and markers distinguish the jobs in
black-and-white print.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.report.baseline import Baseline
from harness.report.collect import DatasetGroup
from harness.report.statistics import Predictions
from harness.system.console import printable
from harness.training.metrics import (
    calibration_labels,
    confusion_picture,
    events,
    mean_roc_curve,
    new_figure,
    png,
)

if TYPE_CHECKING:
    import pandas

# The first colours are those of Okabe and Ito (2008), Color Universal Design, without the yellow,
# which is too pale on white. Muted colours of Paul Tol follow. The book's architectures get the
# first colours.
COLOURS = (
    *("#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999"),
    *("#882255", "#332288", "#999933", "#117733"),
)
MARKERS = "os^Dv<>PX*os"
LINES = (*("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1))) * 2, "-", "--")
GREY = "#595959"
WIDTH, HEIGHT = 5.6, 3.6  # inches without the legend
LEGEND_LINE = 0.165  # inches per line of the legend
FOREST_LINE = 0.13  # inches per job in the plot of all jobs
MAX_ROWS = 1000  # largest number of jobs in this plot: Matplotlib draws at most 65,535 pixels
MAX_NAME = 60  # largest number of characters of a job's name in this plot

Styles = dict[str, dict[str, Any]]  # Matplotlib's arguments for each job


@dataclass(frozen=True)
class Picture:
    """A PNG with its title and its caption."""

    title: str
    png: bytes
    caption: str

    @property
    def base64(self) -> str:
        """The PNG as base64, to embed in a page."""
        return base64.b64encode(self.png).decode()


def styles_of(group: DatasetGroup) -> Styles:
    """Return colour, marker, line style and label for each of at most twelve jobs."""
    names = ("color", "marker", "linestyle", "label")
    each = zip(COLOURS, MARKERS, LINES, group.runs, strict=False)
    return {style[-1]: dict(zip(names, style, strict=True)) for style in each}


class Chart:
    """A plot of several jobs."""

    def __init__(self, height: float = HEIGHT) -> None:
        self.height = height  # inches without the legend
        self.figure, self.axes = new_figure((WIDTH, height))
        self.axes.grid(alpha=0.3)
        self.axes.spines[["top", "right"]].set_visible(False)

    def picture(self, title: str, caption: str) -> Picture:
        """Return the picture with its legend."""
        # The legend is below the plot, so it covers no curve; its height is added to the figure.
        handles, names = self.axes.get_legend_handles_labels()
        columns = 1 if max(map(len, names), default=0) > 30 else 2
        self.figure.set_size_inches(WIDTH, self.height + LEGEND_LINE * -(-len(names) // columns))
        labels = [*map(_plain, names)]
        options = {"ncols": columns, "fontsize": 8, "frameon": False}
        self.figure.legend(handles, labels, loc="outside lower center", **options)
        return Picture(title, png(self.figure), caption)


def _plain(name: str) -> str:
    """Escape dollar signs for Matplotlib, which would read the text between two as a formula."""
    return printable(name).replace("$", r"\$")


def forest(group: DatasetGroup, differences: "pandas.DataFrame") -> Picture:
    """Draw how far each job is behind the best job."""
    rows = differences.sort_values("mean", kind="stable").head(MAX_ROWS)
    chart = Chart(1 + FOREST_LINE * len(rows))
    for is_shown, colour in ((True, COLOURS[3]), (False, GREY)):
        places = np.flatnonzero(rows["is_shown"] == is_shown)
        mean, low, high = (-100 * rows[key].iloc[places] for key in ("mean", "high", "low"))
        label = "behind the best job" if is_shown else "the data show no difference"
        style: dict[str, Any] = {"fmt": "o", "markersize": 3, "linewidth": 1.2, "label": label}
        chart.axes.errorbar(mean, places, xerr=[mean - low, high - mean], color=colour, **style)
    chart.axes.axvline(0, color=GREY, linewidth=0.8)
    names = [_plain(name[:MAX_NAME]) for name in rows["second"]]
    chart.axes.set_yticks(range(len(rows)), names, fontsize=6)
    chart.axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="points of test accuracy behind the best")
    chart.axes.grid(visible=False, axis="y")
    return chart.picture(
        "Distance from the best job",
        f"Differences from {group.jobs['accuracy'].idxmax()}, with simultaneous 95 % intervals"
        f"{f'; only the first {MAX_ROWS:,} jobs' if len(differences) > MAX_ROWS else ''}.",
    )


def pictures_of(
    group: DatasetGroup,
    epochs: "Mapping[str, pandas.DataFrame]",
    baselines: Sequence[Baseline],
    predictions: Predictions | None,
) -> list[Picture]:
    """Draw the pictures of at most twelve jobs and their baselines; skip pictures without data.

    Args:
        epochs: the result of `epochs_of` for each job.
    """
    styles, parameters = styles_of(group), "parameters of the recurrent layers"
    pictures = [
        _learning_curve(styles, epochs, "val_accuracy", "Validation accuracy", "%"),
        _learning_curve(styles, epochs, "loss", "Training loss", "nats"),
        _accuracy_by(group, baselines, "training_s", "training time", "training time in seconds"),
        _accuracy_by(group, baselines, "recurrent_parameters", "size", parameters),
    ]
    if predictions:
        curves = [_roc(group, predictions), _calibration(group, predictions)]
        pictures += [*curves, *_confusion_matrices(predictions)]
    return [picture for picture in pictures if picture]


def _learning_curve(
    styles: Styles, epochs: "Mapping[str, pandas.DataFrame]", key: str, title: str, unit: str
) -> Picture | None:
    from matplotlib.ticker import MaxNLocator

    chart = Chart()
    for name, of_job in epochs.items():
        ends = (
            ((100 if unit == "%" else 1) * of_job[key])
            .groupby("epoch")
            .agg(["mean", "min", "max", "count"])
            .dropna()
        )
        ends = ends[ends["count"] == ends["count"].max()]
        if len(ends):
            style = {"markersize": 5, "linewidth": 1.6, **styles[name]}
            chart.axes.plot(ends.index, ends["mean"], **style)
            band = {"color": styles[name]["color"], "alpha": 0.15, "linewidth": 0}
            chart.axes.fill_between(ends.index, ends["min"], ends["max"], **band)
    if not chart.axes.has_data():
        return None
    chart.axes.set(xlabel="epoch", ylabel=f"{title.lower()}, {unit}")
    chart.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return chart.picture(
        title,
        "The line is the mean over the seeds, up to the last epoch that all seeds reached; the "
        "band spans the values of all seeds.",
    )


def _accuracy_by(
    group: DatasetGroup, baselines: Sequence[Baseline], key: str, short: str, label: str
) -> Picture | None:
    chart, styles, jobs = Chart(), styles_of(group), group.jobs.dropna(subset=key)
    if jobs.empty:
        return None
    for name, row in jobs.iterrows():
        at, accuracy = row[key], 100 * row["accuracy"]
        low, high = 100 * row["interval_low"], 100 * row["interval_high"]
        bars = [[accuracy - low], [high - accuracy]] if low == low else None
        style = {**styles[name], "linestyle": "none", "markersize": 8, "capsize": 4}
        chart.axes.errorbar(at, accuracy, bars, **style)
    for baseline, line in zip(baselines, ("--", ":", "-."), strict=False):
        chart.axes.axhline(100 * baseline.accuracy, linestyle=line, color=GREY, label=baseline.name)
    chart.axes.set(xlabel=label, ylabel="test accuracy, %")
    chart.axes.margins(x=0.1)
    # Leave room for a marker at zero: a job without recurrent layers has 0 recurrent parameters.
    chart.axes.set_xlim(left=-0.05 * chart.axes.get_xlim()[1])
    chart.axes.xaxis.set_major_formatter("{x:,.10g}")
    return chart.picture(
        f"Accuracy and {short}",
        "Means over the seeds; the bars are the 95 % intervals of the means.",
    )


def _roc(group: DatasetGroup, predictions: Predictions) -> Picture | None:
    """Draw one ROC curve per job, averaged over the seeds.

    With more than two classes, the curve is also averaged over the classes. A class's curve treats
    all other classes as one class. The true positive rates are averaged at equal false positive
    rates.
    """
    truth = predictions.labels
    if truth.min() == truth.max():
        return None
    has_two = len(predictions.classes) == 2
    averaged = "" if has_two else " and the classes (each against the rest)"
    chart, styles = Chart(), styles_of(group)
    for name, by_seed in predictions.by_job.items():
        (rates, *_), curves = zip(*(mean_roc_curve(truth, found) for found in by_seed), strict=True)
        area = group.jobs.loc[name, "roc_auc"]
        title = f"{name} ({area:.4f})" if area == area else name
        style = {**styles[name], "marker": "", "linewidth": 1.6, "label": title}
        chart.axes.plot(rates, np.mean(curves, axis=0), **style)
    chart.axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    chart.axes.set(xlabel="false positive rate", ylabel="true positive rate")
    return chart.picture(
        "ROC curves",
        f"True positive rates, averaged over the seeds{averaged}. The number in brackets "
        "after a job's name is the mean of the areas under the job's curves.",
    )


def _calibration(group: DatasetGroup, predictions: Predictions) -> Picture:
    """Draw one calibration curve per job, from the predictions of all seeds."""
    from sklearn.calibration import calibration_curve

    chart, styles = Chart(), styles_of(group)
    for name, by_seed in predictions.by_job.items():
        truth = np.tile(predictions.labels, len(by_seed))
        shares, means = calibration_curve(*events(truth, np.concatenate(by_seed)), n_bins=10)
        style = {"markersize": 5, "linewidth": 1.6, **styles[name]}
        chart.axes.plot(means, shares, **style)
    chart.axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    chart.axes.set(**calibration_labels(len(predictions.classes)))
    return chart.picture(
        "Calibration",
        "The predictions of all seeds, in ten bins of equal width. The grey line shows perfect "
        "calibration.",
    )


def _confusion_matrices(predictions: Predictions) -> list[Picture]:
    """Draw the confusion matrix of each job."""
    pictures = []
    for name, by_seed in predictions.by_job.items():
        labels, probabilities = np.tile(predictions.labels, len(by_seed)), np.concatenate(by_seed)
        content = confusion_picture(labels, probabilities, predictions.classes)
        note = "The percentages are computed from the predictions of all seeds."
        pictures.append(Picture(f"Confusion matrix of {name}", content, note))
    return pictures
