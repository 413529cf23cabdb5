"""The plots of a comparison's report: each job has one colour, line and marker in all of them.

The colour stands for the architecture, from Okabe and Ito's set, which colour-blind people can tell
apart; the marker says the same without colour. Jobs of one architecture differ by their lines.
"""

import io
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.report.predictions import Predictions, calibration, epochs_of, mean_roc
from harness.report.significance import PooledDifference
from harness.report.summary import Part
from harness.system.console import printable
from harness.training.pictures import png, shortened

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
# Where an architecture has more jobs than there are lines: theirs and Paul Tol's muted ones.
MANY_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"),
    *("#000000", "#999999", "#882255", "#332288", "#999933", "#117733"),
)
MARKERS = "os^Dv<>PX*"
LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
BASELINE_COLOUR = "#595959"
WIDTH, HEIGHT, DPI = 5.6, 3.6, 150  # inches without the legend; dots an inch
LEGEND_LINE = 0.165  # inches
FOREST_LINE, FOREST_DPI = 0.11, 100  # of its rows, which may be hundreds
MAX_ROWS = 1000  # of them: Matplotlib draws no picture of 2^16 pixels
MAX_NAME = 64  # characters, of them
NUM_COLOURS = 256  # of a picture


@dataclass(frozen=True)
class Style:
    """How a job is drawn."""

    colour: str
    line: Any
    marker: str


@dataclass(frozen=True)
class Picture:
    """A PNG with its title, caption and a description for those who can't see it."""

    title: str
    png: bytes
    alt: str
    caption: str


def styles_of(part: Part) -> dict[str, Style]:
    """The style of each job's result by its name."""
    counts = Counter(result.architecture for result in part.group.results)
    order = [*COLOURS, *(name for name in counts if name not in COLOURS)]
    if max(counts.values()) > len(LINES):
        return {
            result.name: Style(
                MANY_COLOURS[index % len(MANY_COLOURS)],
                LINES[index % len(LINES)],
                MARKERS[order.index(result.architecture) % len(MARKERS)],
            )
            for index, result in enumerate(part.group.results)
        }
    lines_used: dict[str, int] = {}
    styles = {}
    for result in part.group.results:
        line = lines_used[result.architecture] = lines_used.get(result.architecture, -1) + 1
        number = order.index(result.architecture)
        colour = COLOURS.get(result.architecture) or OTHER_COLOURS[number % len(OTHER_COLOURS)]
        styles[result.name] = Style(colour, LINES[line], MARKERS[number % len(MARKERS)])
    return styles


def forest(part: Part) -> Picture | None:
    """How far each job is behind the best, with its interval; None where sentences say it all."""
    with_best = [each for each in part.differences if isinstance(each, PooledDifference)]
    best = max(part.group.results, key=lambda each: each.mean)
    behind = sorted((each for each in with_best if each.first is best), key=lambda each: each.mean)
    if not behind:
        return None
    figure, axes = _figure(FOREST_DPI)
    rows = behind[:MAX_ROWS]
    for row, each in enumerate(rows):
        low, high = each.interval or (each.mean, each.mean)
        colour = COLOURS["bilstm"] if each.is_shown else BASELINE_COLOUR
        axes.plot([-high, -low], [row, row], color=colour, linewidth=1.2)
        axes.plot(-each.mean, row, marker="o", markersize=3.5, color=colour)
    axes.axvline(0, color="#1a1a1a", linewidth=0.8)
    names = [shortened(each.second.name, MAX_NAME) for each in rows]
    axes.set_yticks(range(len(rows)), [_as_it_is(name) for name in names], fontsize=6)
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the best first
    axes.set_xlabel("points of test accuracy behind the best")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="x", top=True, labeltop=True)  # hundreds of rows above the lower ones
    figure.set_size_inches(1.4 * WIDTH, 1 + FOREST_LINE * len(rows))
    num_shown = sum(each.is_shown for each in behind)
    cut = f" The first {MAX_ROWS:,} of {len(behind):,}; the table has all."
    limit = cut if len(rows) < len(behind) else ""
    return Picture(
        "Behind the best",
        _with_few_colours(png(figure)),
        f"{best.name} and the {len(behind)} other jobs: {num_shown} are shown to be worse, "
        f"{len(behind) - num_shown} are not.",
        f"Each job beside the best, {best.name}: difference of the means, and the interval that "
        f"holds together with all others. Orange: shown to be worse.{limit}",
    )


def pictures_of(part: Part, predictions: Predictions | None) -> list[Picture]:
    """All pictures of a part for which there is data."""
    pictures = [
        _learning_curve(part, "val_accuracy", title="Validation accuracy", factor=100, unit="%"),
        _learning_curve(part, "loss", title="Training loss", factor=1, unit="nats"),
        _accuracy_over_time(part),
        _accuracy_by(part, "training_s", "training time", label="training time in seconds"),
        _accuracy_by(
            part, "recurrent_parameters", "size", label="parameters of the recurrent layers"
        ),
    ]
    if predictions:
        pictures += [_roc(part, predictions), _calibration(part, predictions)]
    return [picture for picture in pictures if picture]


def _learning_curve(
    part: Part, key: str, *, title: str, factor: float, unit: str
) -> Picture | None:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure()
    styles, described = styles_of(part), []
    for result in part.group.results:
        epochs = epochs_of(result, key)
        if not epochs:
            continue
        style, at = styles[result.name], list(epochs)
        values = [factor * np.asarray(each) for each in epochs.values()]
        means = [float(each.mean()) for each in values]
        low, high = ([float(end(each)) for each in values] for end in (np.min, np.max))
        axes.fill_between(at, low, high, color=style.colour, alpha=0.15, linewidth=0)
        _plot(axes, at, means, style=style, label=result.name)
        described.append(f"{result.name} from {means[0]:.3g} to {means[-1]:.3g}")
    if not described:
        return None
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{title.lower()}, {unit}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _picture(
        figure,
        axes,
        title=title,
        alt=f"{title} by epoch in {unit}, means over seeds, first to last epoch: "
        f"{'; '.join(described)}.",
        caption="The line is the mean over the seeds; the band spans the lowest to the highest.",
    )


def _accuracy_over_time(part: Part) -> Picture | None:
    from matplotlib.ticker import LogFormatter

    figure, axes = _figure()
    styles, described = styles_of(part), []
    for result in part.group.results:
        if not (progress := part.progress.get(result.name)):
            continue
        num_epochs = min(len(each.seconds) for each in progress)
        at = np.mean([each.seconds[:num_epochs] for each in progress], axis=0)
        best = np.mean([each.best[:num_epochs] for each in progress], axis=0)
        _plot(axes, at, best, style=styles[result.name], label=result.name)
        described.append(f"{result.name} {best[-1]:.2f} % after {at[-1]:,.0f} s")
    if not described:
        return None
    if (ngrams := part.ngrams) and ngrams.validation:
        highest = max(accuracy for _, accuracy in ngrams.validation)
        axes.plot(ngrams.training_s, highest, "*", color=BASELINE_COLOUR, label=ngrams.name)
        described.append(f"{ngrams.name} {highest:.2f} % after {ngrams.training_s:,.0f} s")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.xaxis.set_minor_formatter(LogFormatter())  # within a decade 20, 30, 60, no powers
    axes.set_xlabel("training time in seconds, validation included")
    axes.set_ylabel("best validation accuracy so far, %")
    return _picture(
        figure,
        axes,
        title="Validation accuracy over time",
        alt=f"Best validation accuracy so far over training time: {'; '.join(described)}.",
        caption="A point for each epoch, the mean over the seeds, with the time of validation; "
        "without start-up and test.",
    )


def _accuracy_by(part: Part, key: str, short: str, *, label: str) -> Picture | None:
    figure, axes = _figure()
    styles, described = styles_of(part), []
    for result in part.group.results:
        at = result.mean_of(key)
        if at is None:
            continue
        style = styles[result.name]
        margin = result.mean - result.interval[0] if result.interval else None
        axes.errorbar(
            *(at, result.mean, margin),
            color=style.colour,
            marker=style.marker,
            # Hollow if an earlier job of the architecture has the filled marker.
            markerfacecolor=style.colour if style.line == LINES[0] else "white",
            markersize=8,
            capsize=4,
            linestyle="none",
            label=result.name,
        )
        described.append(f"{result.name} {result.mean:.2f} % at {at:,.0f}")
    if not described:
        return None
    for baseline, line in zip(part.baselines, ("--", ":", "-."), strict=False):
        axes.axhline(baseline.accuracy, linestyle=line, color=BASELINE_COLOUR, label=baseline.name)
    axes.set_xlabel(label)
    axes.set_ylabel("test accuracy, %")
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:,.10g}")
    return _picture(
        figure,
        axes,
        title=f"Accuracy and {short}",
        alt=f"Test accuracy over {label}: {'; '.join(described)}.",
        caption="Means over the seeds; the bars are the 95 % intervals of the means.",
    )


def _roc(part: Part, predictions: Predictions) -> Picture | None:
    if predictions.labels.min() == predictions.labels.max():
        return None
    averaged = "" if len(predictions.classes) == 2 else " and the classes, each against the rest"
    figure, axes = _figure()
    corner = axes.inset_axes((0.42, 0.26, 0.54, 0.5))
    styles, described = styles_of(part), []
    for result in part.group.results:
        if result.name not in predictions.by_job:
            continue
        rates = mean_roc(predictions.labels, predictions.by_job[result.name])
        area = result.mean_of("roc_auc")
        label = result.name if area is None else f"{result.name} ({area:.4f})"
        style = styles[result.name]
        for plot in (axes, corner):
            plot.plot(*rates, color=style.colour, linestyle=style.line, linewidth=1.4, label=label)
        described.append(label)
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
        title="ROC curves",
        alt=f"ROC curves with the area under each: {'; '.join(described)}.",
        caption=f"True positive rates, averaged over the seeds{averaged}. In brackets: mean area "
        "under it.",
    )


def _calibration(part: Part, predictions: Predictions) -> Picture:
    figure, axes = _figure()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    styles, described = styles_of(part), []
    for name, probabilities in predictions.by_job.items():
        means, shares, error = calibration(predictions.labels, probabilities)
        label = f"{name} ({error:.3f})"
        _plot(axes, means, shares, style=styles[name], label=label)
        described.append(label)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    is_binary = len(predictions.classes) == 2
    of = predictions.classes[1] if is_binary else "the predicted class"
    axes.set_xlabel(f"predicted probability of {plain(of)}")
    axes.set_ylabel(f"share of {plain(of)}" if is_binary else "share of correct predictions")
    return _picture(
        figure,
        axes,
        title="Calibration",
        alt=f"Calibration with the expected calibration error of each: {'; '.join(described)}.",
        caption="All seeds together, in ten bins. On the grey line, probabilities are exact. "
        "In brackets: expected calibration error.",
    )


def plain(name: str) -> str:
    """A class's name in a picture."""
    return _as_it_is(shortened(name))


def _as_it_is(text: str) -> str:
    """Text for Matplotlib, to which a dollar sign begins mathematics."""
    return printable(text).replace("$", r"\$")


def _plot(axes: "Axes", at: Any, values: Any, *, style: Style, label: str) -> None:
    axes.plot(
        *(at, values),
        color=style.colour,
        linestyle=style.line,
        marker=style.marker,
        markersize=5,
        linewidth=1.6,
        label=label,
    )


def _figure(dpi: int = DPI) -> "tuple[Figure, Axes]":
    # The object API: pyplot keeps its figures in a global list, and picks a backend with a window.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=dpi, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _with_few_colours(picture: bytes) -> bytes:
    """The PNG with a palette, at a third of its size: a report has up to seven of them."""
    from PIL import Image  # which matplotlib writes its pictures with

    file = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as opened:
        opened.convert("RGB").quantize(NUM_COLOURS).save(file, "PNG", optimize=True)
    return file.getvalue()


def _picture(figure: "Figure", axes: "Axes", *, title: str, alt: str, caption: str) -> Picture:
    handles, labels = axes.get_legend_handles_labels()
    labels = [_as_it_is(label) for label in labels]
    columns = 1 if max(map(len, labels)) > 30 else 2 if max(map(len, labels)) > 14 else 3
    # The plot keeps its size however long the legend is.
    figure.set_size_inches(WIDTH, HEIGHT + LEGEND_LINE * -(-len(labels) // columns))
    # Below the plot, where it covers no curve.
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )
    return Picture(title, _with_few_colours(png(figure)), alt, caption)
