"""The pictures of a comparison's report: one colour, line and marker a row in all of them.

A colour is an architecture's, of Okabe and Ito's set, which colour-blind people can tell apart;
the marker says the same without colour. Rows of one architecture differ by their lines.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.report.predictions import Predictions, calibration, epochs_of, mean_roc
from harness.report.summary import Part
from harness.training.metrics import png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito (2008), Color Universal Design, without their yellow, too pale on white.
COLOURS = {
    "rnn": "#E69F00",
    "lstm": "#0072B2",
    "gru": "#009E73",
    "bilstm": "#D55E00",
    "stacked_lstm": "#CC79A7",
}
OTHER_COLOURS = ("#56B4E9", "#000000", "#999999")
MARKERS = "os^Dv<>PX*"
LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
BASELINE_COLOUR = "#595959"
WIDTH, HEIGHT, DPI = 5.6, 3.6, 150  # inches without the legend; dots an inch
LEGEND_LINE = 0.165  # inches


@dataclass(frozen=True)
class Style:
    """How a row is drawn."""

    colour: str
    line: Any
    marker: str


@dataclass(frozen=True)
class Picture:
    """A PNG with what it shows, for those who don't see it too."""

    title: str
    png: bytes
    alt: str
    caption: str


def styles_of(part: Part) -> dict[str, Style]:
    """The style of each row by its name."""
    architectures = list(dict.fromkeys(row.architecture for row in part.group.results))
    unknown = [name for name in architectures if name not in COLOURS]
    order = [*COLOURS, *unknown]
    places: dict[str, int] = {}
    styles = {}
    for row in part.group.results:
        place = places[row.architecture] = places.get(row.architecture, -1) + 1
        number = order.index(row.architecture)
        colour = COLOURS.get(row.architecture) or OTHER_COLOURS[number % len(OTHER_COLOURS)]
        styles[row.name] = Style(colour, LINES[place % len(LINES)], MARKERS[number % len(MARKERS)])
    return styles


def pictures_of(part: Part, predictions: Predictions | None) -> list[Picture]:
    """All pictures of a part that there is something for."""
    styles = styles_of(part)
    found = [
        _learning_curve(part, styles, "val_accuracy", "Validation accuracy", 100, "%"),
        _learning_curve(part, styles, "loss", "Training loss", 1, "nats"),
        _accuracy_by(part, styles, "training_s", "training time in seconds", "training time"),
        _accuracy_by(
            part, styles, "recurrent_parameters", "parameters of the recurrent layers", "size"
        ),
    ]
    if predictions:
        found += [_roc(part, styles, predictions), _calibration(styles, predictions)]
    return [picture for picture in found if picture]


def _learning_curve(
    part: Part, styles: Mapping[str, Style], key: str, title: str, factor: float, unit: str
) -> Picture | None:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure()
    told = []
    for row in part.group.results:
        epochs = epochs_of(row, key)
        if not epochs:
            continue
        style, at = styles[row.name], list(epochs)
        values = [factor * np.asarray(each) for each in epochs.values()]
        means = [float(each.mean()) for each in values]
        low, high = ([float(end(each)) for each in values] for end in (np.min, np.max))
        axes.fill_between(at, low, high, color=style.colour, alpha=0.15, linewidth=0)
        _plot(axes, at, means, style, label=row.name)
        told.append(f"{row.name} from {means[0]:.3g} to {means[-1]:.3g}")
    if not told:
        return None
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{title.lower()}, {unit}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _picture(
        figure,
        axes,
        title,
        f"{title} by epoch in {unit}, means over seeds, first to last epoch: {'; '.join(told)}.",
        "The line is the mean over the seeds, the band reaches from the lowest to the highest.",
    )


def _accuracy_by(
    part: Part, styles: Mapping[str, Style], key: str, label: str, short: str
) -> Picture | None:
    figure, axes = _figure()
    told = []
    for row in part.group.results:
        at = row.mean_of(key)
        if at is None:
            continue
        style = styles[row.name]
        half = row.mean - row.interval[0] if row.interval else 0.0
        axes.errorbar(
            *(at, row.mean, half or None),
            color=style.colour,
            marker=style.marker,
            # Hollow where an earlier row of the architecture has the full marker.
            markerfacecolor=style.colour if style.line == LINES[0] else "white",
            markersize=8,
            capsize=4,
            linestyle="none",
            label=row.name,
        )
        told.append(f"{row.name} {row.mean:.2f} % at {at:,.0f}")
    if not told:
        return None
    for baseline, line in zip(part.baselines, ("--", ":"), strict=False):
        axes.axhline(baseline.accuracy, linestyle=line, color=BASELINE_COLOUR, label=baseline.name)
    axes.set_xlabel(label)
    axes.set_ylabel("test accuracy, %")
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return _picture(
        figure,
        axes,
        f"Accuracy and {short}",
        f"Test accuracy over {label}: {'; '.join(told)}.",
        "Means over the seeds; the bars are the 95 % intervals of the means.",
    )


def _roc(part: Part, styles: Mapping[str, Style], predictions: Predictions) -> Picture | None:
    if predictions.labels.min() == predictions.labels.max():
        return None
    figure, axes = _figure()
    corner = axes.inset_axes((0.42, 0.26, 0.54, 0.5))
    told = []
    for row in part.group.results:
        if row.name not in predictions.by_row:
            continue
        rates = mean_roc(predictions.labels, predictions.by_row[row.name])
        area = row.mean_of("roc_auc")
        label = row.name if area is None else f"{row.name} ({area:.4f})"
        style = styles[row.name]
        for plot in (axes, corner):
            plot.plot(*rates, color=style.colour, linestyle=style.line, linewidth=1.4, label=label)
        told.append(label)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    corner.set(xlim=(0, 0.3), ylim=(0.7, 1))
    corner.tick_params(labelsize=8)
    corner.set_title("upper left corner", fontsize=8)
    zoom = axes.indicate_inset_zoom(corner, edgecolor="#595959")
    for connector in zoom.connectors or ():  # they would run through the curves
        connector.set_visible(False)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    return _picture(
        figure,
        axes,
        "ROC curves",
        f"ROC curves with the area under each: {'; '.join(told)}.",
        "True positive rates averaged over the seeds; in brackets the mean area under the curve.",
    )


def _calibration(styles: Mapping[str, Style], predictions: Predictions) -> Picture:
    figure, axes = _figure()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    told = []
    for name, probabilities in predictions.by_row.items():
        means, shares, error = calibration(predictions.labels, probabilities)
        label = f"{name} ({error:.3f})"
        _plot(axes, means, shares, styles[name], label=label)
        told.append(label)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_xlabel("predicted probability of a positive review")
    axes.set_ylabel("share of positive reviews")
    return _picture(
        figure,
        axes,
        "Calibration",
        f"Calibration with the expected calibration error of each: {'; '.join(told)}.",
        "All seeds together, in ten bins; on the grey line a model is as right as it is sure. In "
        "brackets the expected calibration error.",
    )


def _plot(axes: "Axes", at: Any, values: Any, style: Style, label: str) -> None:
    axes.plot(
        *(at, values),
        color=style.colour,
        linestyle=style.line,
        marker=style.marker,
        markersize=5,
        linewidth=1.6,
        label=label,
    )


def _figure() -> "tuple[Figure, Axes]":
    # The object API: pyplot keeps its figures in a global list, and picks a backend with a window.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _picture(figure: "Figure", axes: "Axes", title: str, alt: str, caption: str) -> Picture:
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels)) > 30 else 2 if max(map(len, labels)) > 14 else 3
    # The plot keeps its size however many rows there are.
    figure.set_size_inches(WIDTH, HEIGHT + LEGEND_LINE * -(-len(labels) // columns))
    # Below the plot, where no curve can lie under it.
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )
    return Picture(title, png(figure), alt, caption)
