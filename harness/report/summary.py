"""A comparison as text: its parts, the cells of its table, and what a terminal shows."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.text import Text

from harness.data.imdb_sources import open_dataset
from harness.errors import InputError
from harness.report.baseline import Baseline, NgramBaseline, baselines
from harness.report.collect import BOOK, DatasetGroup, JobResult, LeftOut, group_runs, scored_runs
from harness.report.predictions import (
    Progress,
    progress_of,
    read_predictions,
    seconds_to_accuracy,
    tests_against,
)
from harness.report.settings import check_key, chosen, grouped
from harness.report.significance import Difference, PairedTest, differences, explanations, verdict
from harness.report.text_tables import Line, fitting, screen_table, shown_table, table_lines
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
SEVERAL_CLASSES = (
    "F1 and ROC AUC are means over the classes, the latter of each class against the rest."
)
MAX_SENTENCES = 10  # on a screen
MAX_DRAWN = 12  # jobs in a picture
MAX_LEFT_OUT = 20


@dataclass(frozen=True)
class Request:
    """Which runs are to be compared, and how."""

    named: Sequence[Path]  # runs, folders of runs and patterns
    where: Sequence[str] = ()  # the settings of their jobs, each table.key=value
    group_by: str | None = None  # a key of their jobs
    all_pairs: bool = False
    baseline: Literal["ngrams", "none"] | None = None  # n-grams if not fit yet, or none at all
    data: Path | None = None  # the folder of their dataset, if it is not where a run would look


@dataclass(frozen=True)
class Part:
    """The comparison of the runs on one dataset."""

    group: DatasetGroup
    differences: tuple[Difference, ...]
    baselines: tuple[Baseline, ...]
    by_key: tuple[Line, ...] = ()  # the jobs grouped by a setting, if that was asked for

    @cached_property
    def drawn(self) -> "Part":
        """The part with the best jobs alone, as many as pictures can tell apart."""
        if len(self.group.results) <= MAX_DRAWN:
            return self
        best = sorted(self.group.results, key=lambda each: -each.mean)[:MAX_DRAWN]
        kept = tuple(each for each in self.group.results if each in best)
        return replace(self, group=replace(self.group, results=kept))

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
        results = [result_cells(each, in_book=self.group.in_book) for each in self.ordered]
        return [*results, *map(baseline_cells, self.baselines)]

    @property
    def ordered(self) -> Sequence[JobResult]:
        """The jobs as the table has them: of many the best first."""
        if len(self.group.results) <= MAX_DRAWN:
            return self.group.results
        return sorted(self.group.results, key=lambda each: -each.mean)

    @cached_property
    def standings(self) -> dict[str, str]:
        """For each job one sentence on how it stands to the strongest baseline; empty without one.

        Review by review where that baseline is the linear model over n-grams.
        """
        if not self.baselines:
            return {}
        strongest = self.ngrams or max(self.baselines, key=lambda each: each.accuracy)
        tests = {each.name: each for each in self.paired_tests}
        sentences = {}
        for result in self.group.results:
            points = result.mean - strongest.accuracy
            where = f"{abs(points):.2f} points {'above' if points > 0 else 'below'}"
            test = tests.get(result.name)
            is_shown = "" if test is None else ", shown" if test.is_shown else ", not shown"
            sentences[result.name] = f"{where} {strongest.name}{is_shown}"
        return sentences

    @cached_property
    def progress(self) -> dict[str, list[Progress]]:
        """The progress of each job's seeds, without jobs of which none is known."""
        found = {each.name: progress_of(each) for each in self.group.results}
        return {name: progress for name, progress in found.items() if progress}

    @cached_property
    def seconds_to_accuracy(self) -> dict[str, dict[int, float | None]]:
        """Of each of these jobs the seconds to some validation accuracies, in per cent."""
        return seconds_to_accuracy(self.progress)

    @property
    def time_lines(self) -> list[Line]:
        """A row for each of these jobs."""
        times = self.seconds_to_accuracy
        return [
            {
                "job": each.name,
                **{f"{level} %": _seconds(at) or "never" for level, at in times[each.name].items()},
            }
            for each in self.ordered
            if each.name in times
        ]

    @property
    def notes(self) -> list[str]:
        """How to read the differences."""
        notes = explanations(self.group, self.differences)
        return [*notes, SEVERAL_CLASSES] if self.group.num_classes > 2 else notes

    @property
    def baseline_notes(self) -> list[str]:
        """What the baselines are; empty without any."""
        return [each.note for each in self.baselines if each.note]


def compared(request: Request, say: Callable[[str], None]) -> tuple[list[Part], list[LeftOut]]:
    """Find the runs and compare them.

    Args:
        request: which, and how.
        say: is called with a line for each run that is left out, and for what takes long.

    Returns:
        The parts, and the runs that are in none of them.

    Raises:
        InputError: if no run is finished and tested, or what the request names is not there.
    """
    if request.data:
        open_dataset(request.data)  # refuse a typo, even if nothing is read from there in the end
    scored, left_out = scored_runs(request.named)
    if scored:
        scored = chosen(scored, request.where)
        if request.group_by:
            check_key("--group-by", request.group_by, scored)
    groups, repeated = group_runs(scored)
    left_out += repeated
    for line in left_out_lines(left_out):
        say(line)
    if not groups:
        raise InputError(f"nothing to compare: {len(left_out)} found, none finished and tested")

    def baselines_of(group: DatasetGroup) -> Sequence[Baseline]:
        if request.baseline == "none":
            return ()
        return baselines(group, request.data, say, ngrams=request.baseline == "ngrams")

    parts = make_parts(groups, baselines_of, all_pairs=request.all_pairs, group_by=request.group_by)
    return parts, left_out


def make_parts(
    groups: Iterable[DatasetGroup],
    baselines_of: Callable[[DatasetGroup], Sequence[Baseline]] = lambda group: (),
    *,
    all_pairs: bool = False,
    group_by: str | None = None,
) -> list[Part]:
    """The whole comparison, a part for each dataset; `group_by` is a key of the jobs."""
    return [
        Part(
            each,
            tuple(differences(each, all_pairs=all_pairs)),
            tuple(baselines_of(each)),
            tuple(grouped(each.results, group_by)) if group_by else (),
        )
        for each in groups
    ]


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
        if part.by_key:
            show(shown_table([*part.by_key[0]], part.by_key, console))
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
