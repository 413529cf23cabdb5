"""A comparison as text: on a terminal, in Markdown, CSV, LaTeX and JSON."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from harness.report.baseline import Baseline, NgramBaseline
from harness.report.collect import (
    BOOK,
    DatasetGroup,
    JobResult,
    LeftOut,
    ScoredRun,
    group_runs,
    scored_runs,
)
from harness.report.predictions import read_predictions, tests_against
from harness.report.significance import (
    Difference,
    PairedTest,
    differences,
    explanations,
    verdict,
)
from harness.report.text_tables import (
    Line,
    csv_table,
    fitting,
    latex_table,
    markdown,
    markdown_table,
    screen_table,
    table_lines,
)
from harness.system.console import rich_console

COLUMNS = (
    *("job", "architecture", "recurrent", "parameters", "seeds", "test %", "s.d."),
    *("95 % interval", "F1", "ROC AUC", "log loss", "book %", "train s"),
)
# What a narrow terminal goes without, in this order.
DISPENSABLE = (
    *("parameters", "architecture", "log loss", "ROC AUC", "F1", "recurrent", "train s", "book %"),
    *("s.d.", "95 % interval", "seeds"),
)
# What fits the width of a page.
PAPER = ("job", "seeds", "test %", "s.d.", "95 % interval", "F1", "ROC AUC", "book %", "train s")
CSV_COLUMNS = (
    *("data", "limit", "dataset_checksum", "job", "architecture", "recurrent_parameters"),
    *("parameters", "num_seeds", "seeds", "accuracy", "deviation", "interval_low"),
    *("interval_high", "f1", "roc_auc", "log_loss", "book_accuracy", "training_s"),
)
SEVERAL_CLASSES = (
    "F1 and ROC AUC are means over the classes, the latter of each class against the rest."
)
MAX_SENTENCES = 10  # on a screen
MAX_LEFT_OUT = 20


@dataclass(frozen=True)
class Part:
    """The comparison of the runs on one dataset."""

    group: DatasetGroup
    differences: tuple[Difference, ...]
    baselines: tuple[Baseline, ...]

    @property
    def ngrams(self) -> NgramBaseline | None:
        """The baseline that the jobs are tested against, None if it was never fit."""
        return next((each for each in self.baselines if isinstance(each, NgramBaseline)), None)

    @cached_property
    def paired_tests(self) -> list[PairedTest]:
        """Each job with predictions against n-grams; empty without n-grams."""
        # The report, which shows predictions, says which of them can't be read.
        if not self.ngrams or not (predictions := read_predictions(self.group, lambda _: None)):
            return []
        return tests_against(self.ngrams.predicted, self.ngrams.accuracy, predictions)

    @property
    def verdicts(self) -> list[str]:
        """Whether a network beats n-grams, in one sentence; empty without n-grams."""
        if not self.ngrams:
            return []
        return [verdict(self.paired_tests, f"{self.ngrams.name} ({self.ngrams.accuracy:.2f} %)")]

    @property
    def heading(self) -> str:
        """Which reviews these are, and how many the runs were tested on."""
        tested = f", tested on {self.group.num_test:,} reviews" if self.group.num_test else ""
        return f"{self.group.title}{tested}"

    @property
    def columns(self) -> list[str]:
        """The columns that are not empty, and always `job`."""
        lines = self.lines
        return [name for name in COLUMNS if name == "job" or any(line[name] for line in lines)]

    @property
    def lines(self) -> list[Line]:
        """The rows of the table as text, the baselines last."""
        results = [result_cells(each, in_book=self.group.in_book) for each in self.group.results]
        return [*results, *map(baseline_cells, self.baselines)]

    @property
    def notes(self) -> list[str]:
        """How to read the differences."""
        notes = explanations(self.group, self.differences)
        return [*notes, SEVERAL_CLASSES] if self.group.num_classes > 2 else notes

    @property
    def baseline_notes(self) -> list[str]:
        """What the baselines are; empty without any."""
        return [each.note for each in self.baselines if each.note]


def make_parts(
    groups: Iterable[DatasetGroup],
    baselines_of: Callable[[DatasetGroup], Sequence[Baseline]] = lambda group: (),
) -> list[Part]:
    """The whole comparison, a part for each dataset."""
    return [Part(each, tuple(differences(each)), tuple(baselines_of(each))) for each in groups]


# Cells


def result_cells(result: JobResult, *, in_book: bool) -> Line:
    """A job's result as text: accuracies in per cent, time in seconds, empty where unknown."""
    interval = result.interval
    book = BOOK.get(result.architecture) if in_book else None
    return {
        "job": result.name,
        "architecture": result.architecture,
        "recurrent": _count(result.mean_of("recurrent_parameters")),
        "parameters": _count(result.mean_of("parameters")),
        "seeds": str(len(result.runs)),
        "test %": f"{result.mean:.2f}",
        "s.d.": "" if result.deviation is None else f"{result.deviation:.2f}",
        "95 % interval": "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
        "F1": _share(result.mean_of("f1")),
        "ROC AUC": _share(result.mean_of("roc_auc")),
        "log loss": _share(result.mean_of("log_loss")),
        "book %": "" if book is None else f"{book:.2f}",
        "train s": _seconds(result.mean_of("training_s")),
    }


def baseline_cells(baseline: Baseline) -> Line:
    """A baseline as a row of the same table."""
    return {
        **dict.fromkeys(COLUMNS, ""),
        "job": baseline.name,
        "architecture": baseline.kind,
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


# On a terminal


def print_parts(parts: Sequence[Part]) -> None:
    """Print everything: on a terminal the columns that fit its width, elsewhere all columns."""
    console = rich_console()
    show = partial(console.print, soft_wrap=not console.is_terminal)
    for index, part in enumerate(parts):
        if index:
            show()
        show(Text(part.heading, "bold"))
        show(results_table(part, console))
        show()
        for sentence in (*part.verdicts, *shown_sentences(part.differences)):
            show(Text(sentence))
        for note in (*part.notes, *part.baseline_notes):
            show(Text(note, "dim"))


def print_runs(folders: Sequence[Path]) -> None:
    """Print the comparison of runs that have just been made, without baselines."""
    print_parts(make_parts(group_runs(scored_runs(folders)[0])[0]))


def results_table(part: Part, console: Console) -> RenderableType:
    """The table as wide as the terminal allows, and whole where the output is no terminal."""
    columns, lines = part.columns, part.lines
    if not console.is_terminal:
        return Text("\n".join(table_lines(columns, lines)))
    shown = fitting(columns, lines, width=console.width, dispensable=DISPENSABLE)
    table = screen_table(shown, lines)
    if hidden := [name for name in columns if name not in shown]:
        note = Text(f"no room here for {', '.join(hidden)}; --markdown has all", "dim")
        return Group(table, note)
    return table


def shown_sentences(compared: Sequence[Difference]) -> list[str]:
    """The sentences; of very many those that show a difference, and how many more there are."""
    chosen = [each for each in compared if each.is_shown or len(compared) <= MAX_SENTENCES]
    lines = [each.sentence for each in chosen[:MAX_SENTENCES]]
    hidden = Counter(each.is_shown for each in compared)
    hidden.subtract(each.is_shown for each in chosen[:MAX_SENTENCES])
    counts = [f"{hidden[True]} more that show a difference"] if hidden[True] else []
    counts += [f"{hidden[False]} that show none"] if hidden[False] else []
    return [*lines, f"and {' and '.join(counts)} (--out writes all)"] if counts else lines


def left_out_lines(left_out: Sequence[LeftOut]) -> list[str]:
    """A line for each run that is in no table; of very many their number."""
    lines = [f"left out, {e.kind}: {e.folder}: {e.why}" for e in left_out[:MAX_LEFT_OUT]]
    counts = Counter(each.kind for each in left_out[MAX_LEFT_OUT:])
    if counts:
        lines.append(f"also left out: {', '.join(f'{n} {kind}' for kind, n in counts.items())}")
    return lines


# In files


def to_markdown(parts: Sequence[Part]) -> str:
    """The comparison in Markdown."""
    return "\n".join(
        "\n".join([
            f"## {markdown(part.heading)}\n",
            markdown_table(part.columns, part.lines),
            *_markdown_list([*part.verdicts, *(each.sentence for each in part.differences)]),
            *_markdown_list([*part.notes, *part.baseline_notes]),
        ])
        for part in parts
    )  # fmt: skip


def _markdown_list(lines: Sequence[str]) -> list[str]:
    return ["".join(f"- {markdown(line)}\n" for line in lines)] if lines else []


def to_csv(parts: Sequence[Part]) -> str:
    """The tables as CSV, unrounded; accuracies in per cent, times in seconds."""
    rows = [
        {"data": part.group.data, "limit": part.group.limit,
         "dataset_checksum": part.group.checksum, **figures}
        for part in parts
        for figures in (*(_result_figures(part, each) for each in part.group.results),
                        *map(_baseline_figures, part.baselines))
    ]  # fmt: skip
    return csv_table(CSV_COLUMNS, rows)


def _result_figures(part: Part, result: JobResult) -> dict[str, Any]:
    low, high = result.interval or (None, None)
    means = {key: result.mean_of(key) for key in ("f1", "roc_auc", "log_loss", "training_s")}
    counts = {key: result.mean_of(key) for key in ("recurrent_parameters", "parameters")}
    return {
        "job": result.name,
        "architecture": result.architecture,
        **{key: None if value is None else round(value) for key, value in counts.items()},
        "num_seeds": len(result.runs),
        "seeds": " ".join(map(str, result.by_seed)),
        "accuracy": result.mean,
        "deviation": result.deviation,
        "interval_low": low,
        "interval_high": high,
        **means,
        "book_accuracy": BOOK.get(result.architecture) if part.group.in_book else None,
    }


def _baseline_figures(baseline: Baseline) -> dict[str, Any]:
    keys = ("parameters", "accuracy", "f1", "roc_auc", "log_loss", "training_s")
    figures = asdict(baseline)
    return {
        "job": baseline.name,
        "architecture": baseline.kind,
        **{key: figures[key] for key in keys},
    }


def _baseline_record(baseline: Baseline) -> dict[str, Any]:
    """Its figures without its predictions, which are as many as there are reviews."""
    return {key: value for key, value in asdict(baseline).items() if key != "predicted"}


def to_latex(parts: Sequence[Part]) -> str:
    """The tables for LaTeX, a rule above the baselines."""
    tables = [
        latex_table(
            [name for name in PAPER if name in part.columns],
            part.lines,
            f"{part.heading}. Means over the seeds; 95 % intervals of Student's t.",
            rules_before={len(part.group.results)} if part.baselines else (),
        )
        for part in parts
    ]
    return "\n".join(["% \\usepackage{booktabs} goes into the preamble", *tables])


def to_json(parts: Sequence[Part], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """All figures for programs, and the runs that each comes from."""
    return {
        "format": 1,
        "parts": [
            {
                "data": part.group.data,
                "limit": part.group.limit,
                "dataset_checksum": part.group.checksum,
                "num_test": part.group.num_test,
                "rows": [
                    {**_result_figures(part, each), "runs": list(map(_run_figures, each.runs))}
                    for each in part.group.results
                ],
                "differences": [_difference_figures(each) for each in part.differences],
                "yardsticks": [_baseline_record(each) for each in part.baselines],
                "paired_tests": [asdict(each) for each in part.paired_tests],
                "verdicts": part.verdicts,
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
        "num_seeds": each.num_seeds,
        "mean": each.mean,
        "deviation": statistics.stdev(each.points) if len(each.points) > 1 else None,
        "interval": each.interval,
        "interval_alone": each.interval_alone,
        "num_comparisons": each.num_comparisons,
        "sentence": each.sentence,
    }
