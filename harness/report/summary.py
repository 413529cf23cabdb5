"""Shows a comparison as tables and sentences, in files and on a terminal."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.text import Text

from harness.data.sources import open_dataset
from harness.errors import InputError
from harness.report.baseline import Baseline, baselines
from harness.report.collect import (
    DatasetGroup,
    LeftOut,
    as_text,
    group_runs,
    scored_runs,
    with_settings,
)
from harness.report.statistics import (
    differences,
    explanations,
    read_predictions,
    verdict,
)
from harness.system.console import echo, printable, rich_console

if TYPE_CHECKING:
    import pandas

# The headings of the columns, and the formats of the cells. The most important columns are first,
# because a narrow terminal shows the last columns in a second table below.
COLUMNS = {
    "job": "{job}",
    "test %": "{accuracy:.2f}",
    "s.d.": "{deviation:.2f}",
    "95 % interval": "{interval_low:.2f} to {interval_high:.2f}",
    "seeds": "{num_seeds:.0f}",
    "audits": "{audits}",
    "book %": "{book_accuracy:.2f}",
    "validation %": "{val_accuracy:.2f}",
    "F1": "{f1:.4f}",
    "ROC AUC": "{roc_auc:.4f}",
    "log loss": "{log_loss:.4f}",
    "architecture": "{architecture}",
    "recurrent": "{recurrent_parameters:,.0f}",
    "parameters": "{parameters:,.0f}",
    "train s": "{training_s:,.1f}",
}
# The columns of the LaTeX table; more would not fit a page.
PAPER = ("job", "test %", "s.d.", "95 % interval", "seeds", "book %", "F1", "ROC AUC", "train s")
COUNTS = ("recurrent_parameters", "parameters", "num_seeds")
ACCURACIES = (
    *("accuracy", "deviation", "interval_low", "interval_high", "val_accuracy", "book_accuracy"),
)
SEVERAL_CLASSES = "F1 and ROC AUC are means over the classes (for ROC AUC, each against the rest)."
MAX_SENTENCES = 10  # largest number of comparisons of jobs on a terminal
MAX_DRAWN = 12  # largest number of jobs in a picture
MAX_LEFT_OUT = 20  # largest number of left-out runs that a terminal lists with a comparison
# A spreadsheet interprets a cell that begins with one of these characters as a formula. The last
# four characters are full-width.
FORMULA = (*"=+-@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Part:
    """The comparison of the runs on one dataset."""

    group: DatasetGroup
    baselines: Sequence[Baseline] = ()
    data: Path | None = None  # the folder in which to look first for the reviews
    in_pairs: bool = False  # whether each pair of jobs is compared, however many jobs there are

    @cached_property
    def table(self) -> "pandas.DataFrame":
        """The table `DatasetGroup.jobs`, followed by a row for each baseline.

        If there are more than `MAX_DRAWN` jobs, they are sorted, the best first. In the row of a
        baseline, the columns that describe only jobs are NaN.
        """
        import pandas

        jobs = self.group.jobs.rename_axis("job").reset_index()
        if len(jobs) > MAX_DRAWN:
            jobs = jobs.sort_values("accuracy", ascending=False, kind="stable")
        numbers = ("accuracy", "f1", "roc_auc", "log_loss", "parameters", "training_s")
        rows = [
            {"job": each.name, "architecture": each.kind, **{n: getattr(each, n) for n in numbers}}
            for each in self.baselines
        ]
        return pandas.DataFrame([*jobs.to_dict("records"), *rows], columns=jobs.columns)

    @cached_property
    def differences(self) -> "pandas.DataFrame":
        """The comparisons of jobs (see `harness.report.statistics.differences`)."""
        return differences(self.group, in_pairs=self.in_pairs)

    @cached_property
    def verdicts(self) -> list[str]:
        """Sentences that say whether a network beats the n-gram model."""
        tested = [each for each in self.baselines if each.predicted]
        predictions = read_predictions(self.group) if tested else None
        return [verdict(each, predictions) for each in tested]

    @property
    def heading(self) -> str:
        """The name of the dataset, and the number of test reviews."""
        tested = f", tested on {self.group.num_test:,} reviews" if self.group.num_test else ""
        return f"{self.group.title}{tested}"

    @cached_property
    def cells(self) -> "pandas.DataFrame":
        """The cells as text, one column for each entry of `COLUMNS`.

        A column without any value is dropped; an unknown number is a blank cell.
        """
        import pandas

        per_cent = {name: 100 * self.table[name] for name in ACCURACIES}
        rows = self.table.assign(**per_cent).to_dict("records")
        texts = [{name: _cell(form, row) for name, form in COLUMNS.items()} for row in rows]
        cells = pandas.DataFrame(texts)
        return cells.loc[:, (cells != "").any()]

    @property
    def notes(self) -> list[str]:
        """The explanations of the differences, and the descriptions of the baselines."""
        several = [SEVERAL_CLASSES] if len(self.group.classes) > 2 else []
        notes = [each.note for each in self.baselines if each.note]
        lines = explanations(self.group, self.differences, in_pairs=self.in_pairs)
        return [*lines, *several, *notes]


def compared(
    named: Sequence[Path],
    own: Path,
    *,
    baseline: Literal["ngrams", "none"] | None = None,
    data: Path | None = None,
    where: Sequence[str] = (),
    in_pairs: bool = False,
) -> tuple[list[Part], list[LeftOut]]:
    """Find the runs and compare them. Print a line for each run that is left out.

    Args:
        named: runs, folders of runs, or glob patterns that match such folders.
        own: the user's folder of runs, in which `harness audit` stores the user's audits.
        baseline: `ngrams` adds the n-gram model even if it is not cached; `none` shows no baseline.
        data: the folder of the dataset; None = look where a new run would look, then where the
            first compared run found its data.
        where: settings of the runs to compare, such as `model.units=64`.
        in_pairs: whether to compare each pair of jobs, however many jobs there are.

    Returns:
        One `Part` for each dataset, and the runs that no part contains.

    Raises:
        InputError: if a named folder is missing; if `data` contains no dataset; if no run with the
            settings in `where` is finished and tested; if `baseline` is `ngrams`, but the n-gram
            model can't be fit.
        RunError: if the dataset in `data` is broken.
    """
    if data:
        open_dataset(data)  # a wrong path is an error, even if all baselines are cached
    scored, left_out = scored_runs(named, own)
    groups, repeated = group_runs(with_settings(scored, where) if scored else [])
    left_out += repeated
    lines = [f"left out: {e.folder} ({e.kind}: {e.why})" for e in left_out]
    for line in first_lines(lines, MAX_LEFT_OUT if groups else len(lines)):
        echo(line, err=True)
    if not groups:
        raise InputError(
            f"nothing to compare: {len(left_out)} folders found, but none is a finished and tested "
            "run; see above"
        )
    is_fit, ngrams = baseline != "none", baseline == "ngrams"
    found = [baselines(each, data, ngrams=ngrams) if is_fit else () for each in groups]
    return [Part(*each, data, in_pairs) for each in zip(groups, found, strict=True)], left_out


def _cell(form: str, row: Mapping[str, Any]) -> str:
    """Format values of a row as text; return "" if one of these values is NaN."""
    try:
        return form.format_map({name: value for name, value in row.items() if value == value})
    except KeyError:
        return ""


# The formats


def to_markdown(parts: Sequence[Part]) -> str:
    """Return the comparison in Markdown."""
    blocks = []
    for part in parts:
        blocks += [f"## {markdown(part.heading)}\n", markdown_table(part.cells)]
        for lines in ([*part.verdicts, *part.differences["sentence"]], part.notes):
            blocks += ["".join(f"- {markdown(line)}\n" for line in lines)] if lines else []
    return "\n".join(blocks)


def to_csv(parts: Sequence[Part]) -> str:
    """Return the table of `figures` as CSV."""
    # A heading may be a key of another person's job file. So headings that a spreadsheet would run
    # as formulas are changed too.
    defused_figures = figures(parts).rename(columns=defused).map(defused)
    return str(defused_figures.to_csv(index=False, lineterminator="\n"))


def figures(parts: Sequence[Part]) -> "pandas.DataFrame":
    """Return a table of unrounded numbers, with a row for each job or baseline.

    Accuracies are numbers from 0 to 1, and times are in seconds. The last columns are the settings
    that differ between jobs, with the headings `table.key`.
    """
    import pandas

    settings = pandas.concat([part.group.settings for part in parts])
    same = settings.columns[settings.map(as_text).nunique() < 2]
    tables = []
    for part in parts:
        group, table = part.group, part.table
        seeds = {name: " ".join(str(run.seed) for run in runs) for name, runs in group.runs.items()}
        about = {"data": group.data, "limit": group.limit, "dataset_checksum": group.checksum}
        counts = {key: table[key].astype(float).round().astype("Int64") for key in COUNTS}
        columns = {**about, **counts, "seeds": table["job"].map(seeds)}
        tables.append(
            table.assign(**columns).join(
                group.settings.drop(columns=same, errors="ignore"), on="job"
            )
        )
    found = pandas.concat(tables, ignore_index=True)
    return found[[*about, *found.columns.drop([*about])]].astype(object)


def to_latex(parts: Sequence[Part]) -> str:
    """Return a LaTeX table for each dataset; a horizontal rule separates jobs from baselines."""
    lines = [
        "% Means over the seeds, with 95 % Student's t intervals.",
        "% \\usepackage{booktabs} goes into the preamble",
    ]
    for part in parts:
        columns = [name for name in PAPER if name in part.cells]
        lines.append(f"\n% {printable(' '.join(part.heading.splitlines()))}")
        lines.append(latex_table(part.cells[columns], num_below=len(part.baselines)))
    return "\n".join(lines)


# Tables of texts


def numeric(cells: "pandas.DataFrame") -> set[str]:
    """Return the columns whose texts all begin like numbers; tables right-align these columns."""
    return {name for name in cells if cells[name].str.match(r"[-0-9]|$").all()}


def plain_table(cells: "pandas.DataFrame", width: int | None = None) -> str:
    """Return a table as plain text, headings first.

    Args:
        cells: the texts of the table, at least one row; the names of the columns are the headings.
        width: the width of a terminal in characters. The columns that do not fit follow below, with
            the first column repeated. By default all columns are side by side.
    """
    cells = cells.map(printable).rename(columns=printable)
    first, *others = cells
    rows = cells.set_index(first).rename_axis(index=None, columns=first)
    # Two spaces separate the columns: pandas adds one, and each heading and text begins with one.
    texts = {
        name: f" {{:<{rows[name].str.len().max()}}}".format for name in {*others} - numeric(cells)
    }
    text = rows.to_string(
        line_width=width, header=[f" {n}" for n in others], formatters=texts, justify="left"
    )
    return "\n".join(line.removesuffix("\\").rstrip() for line in text.splitlines())


def markdown_table(cells: "pandas.DataFrame") -> str:
    """Return a table in Markdown, with numbers aligned to the right."""
    numbers = numeric(cells)
    marks = ["---:" if name in numbers else "---" for name in cells]
    lines = [[*cells], marks, *cells.to_numpy().tolist()]
    return "".join(f"| {' | '.join(map(markdown, line))} |\n" for line in lines)


def markdown(text: str) -> str:
    """Return a text as one line, with the special characters of Markdown and HTML escaped."""
    line = printable(" ".join(text.splitlines()))
    return html.escape(re.sub(r"([\\`*|\[\]])", r"\\\1", line), quote=False)


def defused(cell: object) -> object:
    """Return a CSV cell; put an apostrophe before a formula, so that spreadsheets show it as text.

    A formula may start programs or send data (owasp.org, CSV injection).
    """
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    is_formula = text.lstrip(" ").startswith(FORMULA) and not NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text


def latex_table(cells: "pandas.DataFrame", *, num_below: int) -> str:
    """Return a table in LaTeX, for the package booktabs.

    Args:
        cells: the texts of the table, at least one row; the names of the columns are the headings.
        num_below: the number of rows at the end that a horizontal line separates from the others.
    """
    kinds = "".join("r" if name in numeric(cells) else "l" for name in cells)
    cells = cells.map(lambda cell: printable(" ".join(cell.splitlines())))
    lines = cells.to_latex(index=False, escape=True, column_format=kinds).splitlines()
    if num_below:
        lines.insert(-2 - num_below, r"\midrule")
    return "\n".join([*lines, ""])


# On a terminal


def print_parts(parts: Sequence[Part], console: Console | None = None) -> None:
    """Print the comparison; on a narrow terminal the table is split into several tables."""
    console = console or rich_console()
    width = console.width if console.is_terminal else None
    show = partial(console.print, soft_wrap=width is None)
    for index, part in enumerate(parts):
        if index:
            show()
        show(Text(part.heading, "bold"))
        show(Text(plain_table(part.cells, width)))
        show()
        sentences = first_lines([*part.differences["sentence"]], MAX_SENTENCES)
        for sentence in (*part.verdicts, *sentences):
            show(Text(sentence))
        for note in part.notes:
            show(Text(note, "dim"))


def print_runs(folders: Sequence[Path]) -> None:
    """Print the comparison of new runs, without baselines."""
    print_parts([Part(group) for group in group_runs(scored_runs(folders)[0])[0]])


def first_lines(lines: Sequence[str], num: int) -> list[str]:
    """Return the first `num` lines; if there are more, a last line says how many are left out."""
    num_more = len(lines) - num
    more = [f"and {num_more:,} more (--out writes all)"] if num_more > 0 else []
    return [*lines[:num], *more]
