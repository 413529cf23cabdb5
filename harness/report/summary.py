"""A comparison as text: what stands on a screen, in Markdown, CSV, LaTeX and JSON."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from harness.report.baseline import Baseline
from harness.report.collect import (
    BOOK,
    DatasetGroup,
    JobResult,
    LeftOut,
    ScoredRun,
    group_runs,
    scored_runs,
)
from harness.report.significance import Difference, differences, explanations
from harness.report.text_tables import (
    Line,
    csv_table,
    fitting,
    latex_table,
    markdown_table,
    table_lines,
)

COLUMNS = (
    *("job", "architecture", "recurrent", "parameters", "seeds", "test %", "s.d."),
    *("95 % interval", "F1", "ROC AUC", "log loss", "book %", "train s"),
)
# What a narrow screen goes without, in this order.
DISPENSABLE = (
    *("parameters", "architecture", "log loss", "ROC AUC", "F1", "recurrent", "train s", "book %"),
)
# What stands in the width of a page.
PAPER = ("job", "seeds", "test %", "s.d.", "95 % interval", "F1", "ROC AUC", "book %", "train s")
CSV_COLUMNS = (
    *("data", "limit", "dataset_checksum", "job", "architecture", "recurrent_parameters"),
    *("parameters", "num_seeds", "seeds", "accuracy", "deviation", "interval_low"),
    *("interval_high", "f1", "roc_auc", "log_loss", "book_accuracy", "training_s"),
)
MAX_SENTENCES = 10  # on a screen
MAX_LEFT_OUT = 20


@dataclass(frozen=True)
class Part:
    """All there is to say of the runs on one dataset."""

    group: DatasetGroup
    differences: tuple[Difference, ...]
    baselines: tuple[Baseline, ...]

    @property
    def heading(self) -> str:
        """Which reviews these are, and how many were tested on."""
        tested = f", tested on {self.group.num_test:,} reviews" if self.group.num_test else ""
        return f"{self.group.title}{tested}"

    @property
    def columns(self) -> list[str]:
        """The columns in which anything stands, `job` always."""
        lines = self.lines
        return [name for name in COLUMNS if name == "job" or any(line[name] for line in lines)]

    @property
    def lines(self) -> list[Line]:
        """The rows of the table as text, the yardsticks last."""
        rows = [row_cells(row, in_book=self.group.in_book) for row in self.group.rows]
        return [*rows, *map(baseline_cells, self.baselines)]

    @property
    def notes(self) -> list[str]:
        """How the table and the sentences are to be read."""
        lines = explanations(self.group, self.differences)
        if self.baselines:
            first = self.baselines[0]
            lines.append(
                "tf-idf: logistic regression over TF-IDF of the "
                f"{first.vocab_size - 4:,} commonest words, fit on all {first.num_training:,} "
                f"training reviews, once on the last {first.maxlen} words that the networks read "
                "and once on whole reviews."
            )
        return lines


def make_parts(
    groups: Iterable[DatasetGroup],
    yardsticks_of: Callable[[DatasetGroup], Sequence[Baseline]] = lambda group: (),
) -> list[Part]:
    """The whole comparison, a part a dataset."""
    return [Part(each, tuple(differences(each)), tuple(yardsticks_of(each))) for each in groups]


# Cells


def row_cells(row: JobResult, *, in_book: bool) -> Line:
    """A row of runs as text: accuracies in per cent, time in seconds, empty where unknown."""
    interval = row.interval
    return {
        "job": row.name,
        "architecture": row.architecture,
        "recurrent": _count(row.mean_of("recurrent_parameters")),
        "parameters": _count(row.mean_of("parameters")),
        "seeds": str(len(row.runs)),
        "test %": f"{row.mean:.2f}",
        "s.d.": "" if row.deviation is None else f"{row.deviation:.2f}",
        "95 % interval": "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
        "F1": _share(row.mean_of("f1")),
        "ROC AUC": _share(row.mean_of("roc_auc")),
        "log loss": _share(row.mean_of("log_loss")),
        "book %": f"{BOOK[row.architecture]:.2f}" if in_book and row.architecture in BOOK else "",
        "train s": _seconds(row.mean_of("training_s")),
    }


def baseline_cells(baseline: Baseline) -> Line:
    """The yardstick as a row of the same table."""
    return {
        **dict.fromkeys(COLUMNS, ""),
        "job": baseline.name,
        "architecture": "tf-idf",
        "parameters": _count(baseline.parameters),
        "test %": f"{baseline.accuracy:.2f}",
        "F1": _share(baseline.f1),
        "ROC AUC": _share(baseline.roc_auc),
        "log loss": _share(baseline.log_loss),
        "train s": _seconds(baseline.training_s),
    }


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


# On a screen


def print_parts(parts: Sequence[Part]) -> None:
    """Print all: as much as fits a terminal's width, every column into a file."""
    console = Console(highlight=False, emoji=False)
    for place, part in enumerate(parts):
        if place:
            _print(console, "")
        _print(console, part.heading, "bold")
        for line, style in screen_table(part, console.width if console.is_terminal else None):
            _print(console, line, style)
        _print(console, "")
        for sentence in shown_sentences(part.differences):
            _print(console, sentence)
        for note in part.notes:
            _print(console, note, "dim")


def print_runs(folders: Sequence[Path]) -> None:
    """Print the comparison of runs that have just been made, without a yardstick."""
    scored, _ = scored_runs(folders)
    print_parts(make_parts(group_runs(scored)[0]))


def _print(console: Console, line: str, style: str = "") -> None:
    console.print(Text(line, style), soft_wrap=not console.is_terminal)


def screen_table(part: Part, width: int | None) -> list[tuple[str, str]]:
    """The table's lines with their styles, all of it where no width is given."""
    lines = part.lines
    columns = part.columns
    if width is not None:
        spare = [name for name in DISPENSABLE if name in columns]
        columns = fitting(columns, lines, width, spare)
    hidden = [name for name in part.columns if name not in columns]
    below = [(f"no room here for {', '.join(hidden)}; --markdown has all", "dim")] if hidden else []
    heading, *rows = table_lines(columns, lines)
    if width is None or max(map(len, (heading, *rows))) <= width:
        return [(heading, "bold"), *((row, "") for row in rows), *below]
    # A job whose name alone is too long stands above its figures.
    others = columns[1:]
    heading, *rows = table_lines(others, lines)
    named = [("job", "bold"), (f"  {heading}", "bold")]
    for line, row in zip(lines, rows, strict=True):
        named += [(line["job"], ""), (f"  {row}", "")]
    return [*named, *below]


def shown_sentences(found: Sequence[Difference]) -> list[str]:
    """The sentences; of very many the ones that show a difference, and how many more there are."""
    chosen = [each for each in found if each.is_shown or len(found) <= MAX_SENTENCES]
    lines = [each.sentence for each in chosen[:MAX_SENTENCES]]
    hidden = Counter(each.is_shown for each in found)
    hidden.subtract(each.is_shown for each in chosen[:MAX_SENTENCES])
    told = [f"{hidden[True]} more that show a difference"] if hidden[True] else []
    told += [f"{hidden[False]} that show none"] if hidden[False] else []
    return [*lines, f"and {' and '.join(told)} (--out writes all)"] if told else lines


def left_out_lines(left_out: Sequence[LeftOut]) -> list[str]:
    """A line for each run that is in no table; of very many how many there are."""
    lines = [describe_left_out(each) for each in left_out[:MAX_LEFT_OUT]]
    counts = Counter(each.kind for each in left_out[MAX_LEFT_OUT:])
    if counts:
        told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        lines.append(f"left out as well: {told}")
    return lines


def describe_left_out(each: LeftOut) -> str:
    """Which folder is in no table, and why, in one line."""
    return f"left out, {each.kind}: {each.folder}: {each.why}"


# In files


def to_markdown(parts: Sequence[Part]) -> str:
    """The comparison in Markdown."""
    return "\n".join(
        "\n".join([
            f"## {part.heading}\n",
            markdown_table(part.columns, part.lines),
            *_markdown_list([each.sentence for each in part.differences]),
            *_markdown_list(part.notes),
        ])
        for part in parts
    )  # fmt: skip


def _markdown_list(lines: Sequence[str]) -> list[str]:
    return ["".join(f"- {line}\n" for line in lines)] if lines else []


def to_csv(parts: Sequence[Part]) -> str:
    """The tables as CSV: a line a row, unrounded; accuracies in per cent, time in seconds."""
    rows = [
        {"data": part.group.data, "limit": part.group.limit,
         "dataset_checksum": part.group.checksum, **figures}
        for part in parts
        for figures in (*(_row_figures(part, row) for row in part.group.rows),
                        *map(_baseline_figures, part.baselines))
    ]  # fmt: skip
    return csv_table(CSV_COLUMNS, rows)


def _row_figures(part: Part, row: JobResult) -> dict[str, Any]:
    low, high = row.interval or (None, None)
    means = {key: row.mean_of(key) for key in ("f1", "roc_auc", "log_loss", "training_s")}
    counts = {key: row.mean_of(key) for key in ("recurrent_parameters", "parameters")}
    return {
        "job": row.name,
        "architecture": row.architecture,
        **{key: None if value is None else round(value) for key, value in counts.items()},
        "num_seeds": len(row.runs),
        "seeds": " ".join(map(str, row.by_seed)),
        "accuracy": row.mean,
        "deviation": row.deviation,
        "interval_low": low,
        "interval_high": high,
        **means,
        "book_accuracy": BOOK.get(row.architecture) if part.group.in_book else None,
    }


def _baseline_figures(baseline: Baseline) -> dict[str, Any]:
    keys = ("parameters", "accuracy", "f1", "roc_auc", "log_loss", "training_s")
    figures = asdict(baseline)
    return {
        "job": baseline.name,
        "architecture": "tf-idf",
        **{key: figures[key] for key in keys},
    }


def to_latex(parts: Sequence[Part]) -> str:
    """The tables for LaTeX, a rule above the yardsticks."""
    tables = [
        latex_table(
            [name for name in PAPER if name in part.columns],
            part.lines,
            f"{part.heading}. Means over the seeds; 95 % intervals of Student's t.",
            rules_before={len(part.group.rows)} if part.baselines else (),
        )
        for part in parts
    ]
    return "\n".join(["% \\usepackage{booktabs} goes into the preamble", *tables])


def to_json(parts: Sequence[Part], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """All figures for programs, and which run each is from."""
    return {
        "format": 1,
        "parts": [
            {
                "data": part.group.data,
                "limit": part.group.limit,
                "dataset_checksum": part.group.checksum,
                "num_test": part.group.num_test,
                "rows": [
                    {**_row_figures(part, row), "runs": [_run_figures(run) for run in row.runs]}
                    for row in part.group.rows
                ],
                "differences": [_difference_figures(each) for each in part.differences],
                "yardsticks": [asdict(each) for each in part.baselines],
            }
            for part in parts
        ],
        "left_out": [
            {"folder": str(each.folder), "kind": each.kind, "why": each.why} for each in left_out
        ],
    }


def _run_figures(run: ScoredRun) -> dict[str, Any]:
    return {"folder": str(run.folder.absolute()), "seed": run.seed, "accuracy": run.accuracy}


def _difference_figures(each: Difference) -> dict[str, Any]:
    return {
        "first": each.first.name,
        "second": each.second.name,
        "num_seeds": len(each.points),
        "mean": each.mean,
        "deviation": statistics.stdev(each.points),
        "interval": each.interval,
        "interval_alone": each.interval_alone,
        "num_comparisons": each.num_comparisons,
        "sentence": each.sentence,
    }
