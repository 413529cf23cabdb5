"""The report of a comparison: one page that loads nothing, with tables, pictures and reviews."""

import base64
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from harness.data.dataset import Dataset
from harness.files.lenient_json import table, text
from harness.report.collect import JobResult, LeftOut, ScoredRun
from harness.report.plots import Picture, Style, pictures_of, styles_of
from harness.report.predictions import (
    Predictions,
    mean_confusion,
    most_disputed,
    over_reviews,
    wrong_by_all,
)
from harness.report.summary import Part
from harness.report.text_tables import Line, numeric
from harness.tracking.run_dir import RunDirectory

NUM_REVIEWS = 10
MAX_OPEN = 10  # sentences of no difference before they are folded away
MAX_SHORT = 30  # letters of a name that is not broken
NUM_WORDS = 30  # of a review before it is opened


@dataclass(frozen=True)
class Section:
    """A part of the comparison with all that a page needs beside its figures."""

    part: Part
    predictions: Predictions | None
    dataset: Dataset | None  # where the reviews' words are at hand


def render(sections: Sequence[Section], left_out: Sequence[LeftOut], made: str) -> str:
    """The whole page.

    Args:
        sections: one at least.
        left_out: the runs that are in no table.
        made: when and by what, in words.
    """
    num_runs = sum(each.part.group.num_runs for each in sections)
    body = "".join(map(_section, sections, range(1, len(sections) + 1)))
    links = "".join(
        f'<li><a href="#data-{place}">{escape(each.part.heading)}</a></li>'
        for place, each in enumerate(sections, 1)
    )
    return string.Template(PAGE).substitute(
        summary=escape(f"{num_runs} finished run{'' if num_runs == 1 else 's'}; {made}"),
        contents=f"<nav><ul>{links}</ul></nav>" if len(sections) > 1 else "",
        sections=body,
        records=_records(sections),
        left_out=_left_out(left_out),
    )


def _section(section: Section, place: int) -> str:
    part, predictions = section.part, section.predictions
    styles = styles_of(part)
    blocks = [
        f'<section id="data-{place}"><h2>{escape(part.heading)}</h2>',
        *(["<p><strong>A sample, not the full data.</strong></p>"] if part.group.is_sample else []),
        _table(
            part.columns,
            part.lines,
            "Test scores, means over the seeds",
            numbers=numeric(part.columns, part.lines),
            styles=styles,
        ),
        _list([note for note in part.notes if note.startswith("tf-idf")]),
        _differences(part, predictions),
        '<h3>Pictures</h3><div class="pictures">',
        *map(_figure, pictures_of(part, predictions)),
        "</div>",
    ]
    if predictions:
        blocks += [_confusions(predictions, styles), _reviews(section, predictions)]
    else:
        blocks.append("<p>No run has predictions, so there are no curves and reviews of them.</p>")
    return "".join([*blocks, "</section>"])


def _table(
    columns: Sequence[str],
    lines: Sequence[Line],
    caption: str,
    *,
    numbers: Collection[str] = (),
    styles: Mapping[str, Style] | None = None,
) -> str:
    """A table whose first column names its rows; it scrolls by itself where it is too wide."""

    def cell(name: str, line: Line) -> str:
        kind = ' class="number"' if name in numbers else ""
        if name != columns[0]:
            return f"<td{kind}>{escape(line[name])}</td>"
        swatch = _swatch(styles[line[name]]) if styles and line[name] in styles else ""
        # A short name stays beside its colour.
        short = ' class="short"' if len(line[name]) <= MAX_SHORT else ""
        return f'<th scope="row"{short}>{swatch}{escape(line[name])}</th>'

    heads = "".join(
        f'<th scope="col"{" class=number" if name in numbers else ""}>{escape(name)}</th>'
        for name in columns
    )
    rows = "".join(f"<tr>{''.join(cell(name, line) for name in columns)}</tr>" for line in lines)
    label = escape(caption)
    return (
        f'<div class="wide" role="region" aria-label="{label}" tabindex="0"><table>'
        f"<caption>{label}</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>"
        "</table></div>"
    )


def _swatch(style: Style) -> str:
    return f'<span class="swatch" style="background:{style.colour}"></span>'


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _figure(picture: Picture) -> str:
    source = base64.b64encode(picture.png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{source}" alt="{escape(picture.alt)}">'
        f"<figcaption><strong>{escape(picture.title)}.</strong> {escape(picture.caption)}"
        "</figcaption></figure>"
    )


# What the differences show


def _differences(part: Part, predictions: Predictions | None) -> str:
    notes = _list([note for note in part.notes if not note.startswith("tf-idf")])
    if not part.differences:
        return f"<h3>Differences</h3>{notes}"
    shown = [each.sentence for each in part.differences if each.is_shown]
    others = [each.sentence for each in part.differences if not each.is_shown]
    lines = []
    for each in part.differences:
        half = over_reviews(each, predictions) if predictions else None
        lines.append({
            "pair": f"{each.first.name} − {each.second.name}",  # noqa: RUF001 - a minus
            "seeds": str(len(each.points)),
            "points": f"{each.mean:.2f}",
            "95 %, all together": _interval(each.interval),
            "95 %, this pair alone": _interval(each.interval_alone),
            "± over other reviews": "" if half is None else f"{half:.2f}",
            "shown": "yes" if each.is_shown else "no",
        })  # fmt: skip
    columns = list(lines[0])
    heading = "What the data show" if shown else "The data show no difference"
    hidden = _list(others)
    if len(others) > MAX_OPEN:
        hidden = f"<details><summary>{len(others)} that are not shown</summary>{hidden}</details>"
    if shown and others:
        hidden = f"<h3>What they don't show</h3>{hidden}"
    caption = "Paired differences in points of test accuracy"
    explained = (
        "<p>± over other reviews: half the 95 % interval for the same trained models on other "
        "reviews of the same kind, paired over the reviews, each pair alone. A difference to build "
        "on is larger than that too.</p>"
        if predictions
        else ""
    )
    return (
        f"<h3>{heading}</h3>{_list(shown)}{hidden}{notes}"
        f"<details><summary>As a table</summary>"
        f"{_table(columns, lines, caption, numbers=columns[1:-1])}{explained}</details>"
    )


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


# Confusion matrices


def _confusions(predictions: Predictions, styles: Mapping[str, Style]) -> str:
    panels = [
        _confusion(name, styles[name], mean_confusion(predictions.labels, probabilities).tolist())
        for name, probabilities in predictions.by_row.items()
    ]
    return (
        "<h3>Confusion matrices</h3><p>Reviews, means over the seeds; the percentages of a line "
        'add up to 100, and the darker a field the larger its share.</p><div class="confusions">'
        f"{''.join(panels)}</div>"
    )


def _confusion(name: str, style: Style, counts: list[list[float]]) -> str:
    lines = []
    for truth, line in zip(("negative", "positive"), counts, strict=True):
        shares = [count / max(sum(line), 1e-9) for count in line]
        cells = "".join(
            # At most half as dark, so that dark text stays readable on it.
            f'<td style="background:rgb(0 114 178 / {0.5 * share:.2f})">{count:,.0f}<br>'
            f"<small>{100 * share:.1f} %</small></td>"
            for count, share in zip(line, shares, strict=True)
        )
        lines.append(f'<tr><th scope="row">{truth}</th>{cells}</tr>')
    return (
        f"<table class=confusion><caption>{_swatch(style)}{escape(name)}</caption><thead><tr>"
        '<th scope="col">is</th><th scope="col">said negative</th>'
        f'<th scope="col">said positive</th></tr></thead><tbody>{"".join(lines)}</tbody></table>'
    )


# Reviews


def _reviews(section: Section, predictions: Predictions) -> str:
    wrong = wrong_by_all(predictions)
    num_runs, num_reviews = predictions.right.shape
    told = f"{len(wrong):,} of {num_reviews:,} reviews ({100 * len(wrong) / num_reviews:.1f} %)"
    blocks = [
        f"<h3>Reviews that all get wrong</h3><p>All {num_runs} runs are wrong on {told}."
        f"{' The surest mistakes first:' if len(wrong) else ''}</p>",
        _review_list(section, predictions, wrong[:NUM_REVIEWS].tolist()),
    ]
    if len(predictions.by_row) > 1:
        blocks += [
            "<h3>Reviews on which they disagree most</h3><p>By the spread of the rows' mean "
            "probabilities:</p>",
            _review_list(section, predictions, most_disputed(predictions, NUM_REVIEWS).tolist()),
        ]
    if section.dataset is None:
        blocks.append("<p>The reviews' words are not at hand here, so their numbers stand alone: "
                      "their places in the test set, from 0.</p>")  # fmt: skip
    return "".join(blocks)


def _review_list(section: Section, predictions: Predictions, places: Sequence[int]) -> str:
    return "".join(_review(section, predictions, place) for place in places)


def _review(section: Section, predictions: Predictions, place: int) -> str:
    truth = "positive" if predictions.labels[place] else "negative"
    said = ", ".join(
        f"{name} {mean:.2f}"
        for name, mean in zip(predictions.by_row, predictions.means[:, place], strict=True)
    )
    head = (
        f"<p><strong>Review {place}</strong> is <strong>{truth}</strong>. Mean probability of "
        f"positive: {escape(said)}</p>"
    )
    words = _words(section.dataset, place)
    if not words:
        return f'<div class="review">{head}</div>'
    text = escape(" ".join(words))
    if len(words) <= NUM_WORDS:
        return f'<div class="review">{head}<blockquote>{text}</blockquote></div>'
    first = escape(" ".join(words[:NUM_WORDS]))
    return (
        f'<div class="review">{head}<details><summary>{first} … ({len(words):,} words)</summary>'
        f"<blockquote>{text}</blockquote></details></div>"
    )


def _words(dataset: Dataset | None, place: int) -> list[str]:
    if dataset is None:
        return []
    start, end = dataset.test.offsets[place : place + 2]
    return [dataset.words[rank - 1] for rank in dataset.test.tokens[start:end].tolist()]


# Records


def _records(sections: Sequence[Section]) -> str:
    rows = [row for section in sections for row in section.part.group.rows]
    known = environments(rows)
    lines = run_lines(rows)
    mixed = (
        f"<p>The runs are from {len(known)} kinds of environment; times of different ones can't be "
        "compared, and accuracies may differ in their last digits.</p>"
        if len(known) > 1
        else ""
    )
    return (
        f"{mixed}{_table(list(known[0]), known, 'Environments')}"
        f"<details><summary>All {len(lines)} runs</summary>"
        f"{_table(list(lines[0]), lines, 'Runs')}</details>"
    )


def _left_out(left_out: Sequence[LeftOut]) -> str:
    apart = "<p>Runs on other data have a table of their own above, never one in common.</p>"
    if not left_out:
        return f"{apart}<p>No other run was found.</p>"
    lines = [
        {"run": str(each.folder), "kind": each.kind, "why": each.why}
        for each in sorted(left_out, key=lambda each: each.kind)
    ]
    return apart + _table(["run", "kind", "why"], lines, "In no table above")


UNKNOWN = "unknown"


def environments(rows: Sequence[JobResult]) -> list[Line]:
    """Each unlike machine, set of versions and code, a line for each, with how many runs it had."""
    counts: dict[tuple[tuple[str, str], ...], int] = {}
    for row in rows:
        for run in row.runs:
            known = tuple(_environment(run).items())
            counts[known] = counts.get(known, 0) + 1
    return [{"runs": str(count), **dict(known)} for known, count in counts.items()]


def _environment(run: ScoredRun) -> dict[str, str]:
    record = RunDirectory(run.folder).read_json("provenance.json")
    packages = table(record, "packages")
    names = ("tensorflow", "keras", "numpy")
    commit = (text(record.get("commit")) or UNKNOWN)[:12]
    changed = " with uncommitted changes" if text(record.get("uncommitted_diff")) else ""
    return {
        "processor": text(record.get("processor")) or UNKNOWN,
        "devices": _devices(run, record),
        "driver": text(record.get("driver")) or "none",
        "packages": ", ".join(f"{n} {text(packages.get(n)) or UNKNOWN}" for n in names),
        "Python": text(record.get("python")) or UNKNOWN,
        "system": text(record.get("system")) or UNKNOWN,
        "code": f"{commit}{changed}",
    }


def _devices(run: ScoredRun, record: dict[str, Any]) -> str:
    """Each start of a run may have had others; the last one's, with the names where known."""
    starts = record.get("starts")
    last = starts[-1] if isinstance(starts, list) and starts else {}
    devices = last.get("devices") if isinstance(last, dict) else None
    if not isinstance(devices, list) or not devices:
        devices = run.result.get("devices") or [UNKNOWN]
    named = [
        " ".join(map(str, each.values())) if isinstance(each, dict) else str(each)
        for each in devices
    ]
    return ", ".join(named)


def run_lines(rows: Sequence[JobResult]) -> list[Line]:
    """Each run with its seed, score and folder."""
    return [
        {
            "run": str(run.folder),
            "row": row.name,
            "seed": str(run.seed),
            "test %": f"{run.accuracy:.2f}",
        }
        for row in rows
        for run in row.runs
    ]


# Nothing is loaded and nothing runs: the page itself says so to the browser.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="generator" content="harness compare">
<title>Comparison of runs</title>
<style>
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 .5rem; break-after: avoid; }
caption { break-after: avoid; }
tr { break-inside: avoid; }
h1 { margin-top: .5rem; }
h2 { border-bottom: 2px solid #1a1a1a; padding-bottom: .25rem; }
p, li { max-width: 48rem; }
a { color: #00507d; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .25rem; }
.wide th, .wide td { padding: .3rem .75rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #d0d0d0; }
.wide thead th { border-bottom: 2px solid #1a1a1a; white-space: nowrap; }
.wide th[scope=row] { font-weight: 500; }
.wide th.short { white-space: nowrap; }
.wide td.number, .wide th.number { text-align: right; white-space: nowrap; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .4em;
  border-radius: 2px; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.pictures { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); }
figure { margin: 0; break-inside: avoid; }
figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: .9rem; }
.confusions { display: flex; flex-wrap: wrap; gap: 1.25rem; }
.confusion { break-inside: avoid; font-size: .9rem; }
.confusion caption { overflow-wrap: anywhere; }
.confusion th { font-weight: 400; padding: .2rem .5rem .2rem 0; text-align: left; }
.confusion td { padding: .4rem .6rem; text-align: center; border: 1px solid #fff;
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.review { border-left: 3px solid #d0d0d0; padding-left: .75rem; margin: 1rem 0;
  max-width: 48rem; break-inside: avoid; }
.review p { margin: 0; }
.review blockquote { margin: .5rem 0; overflow-wrap: anywhere; }
summary { cursor: pointer; overflow-wrap: anywhere; }
@media print {
  body { font-size: 9pt; max-width: none; padding: 0; }
  .wide { overflow: visible; }
  .wide th, .wide td { padding-right: .4rem; }
  .pictures { grid-template-columns: 1fr 1fr; }
}
</style>
</head>
<body>
<header><h1>Comparison of runs</h1><p>$summary</p>$contents</header>
<main>
$sections
<section><h2>Hardware and versions</h2>$records</section>
<section><h2>Runs that are kept apart</h2>$left_out</section>
</main>
</body>
</html>
"""
