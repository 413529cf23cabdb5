"""The one writer of tables: on a terminal, as plain text, Markdown, CSV and LaTeX."""

import csv
import html
import io
import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from harness.system.console import printable, rich_console

GAP = 2  # blanks between two columns
MAX_NAME = 16  # characters of a first column that a narrow terminal does not wrap
UNLIMITED = 100_000  # columns, for text that is no terminal's

# What a spreadsheet takes for the start of a formula, in wide characters too.
FORMULA = (*"=+-@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

Line = Mapping[str, str]  # a row of a table, by its columns

# Each character that LaTeX would interpret, and what prints it.
_LATEX = str.maketrans({
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
})  # fmt: skip


def numeric(columns: Sequence[str], rows: Sequence[Line]) -> set[str]:
    """The columns of numbers, which are aligned to the right."""
    return {name for name in columns if all((row[name] or "0")[0] in "-0123456789" for row in rows)}


def screen_table(
    columns: Sequence[str],
    rows: Sequence[Line],
    styles: Mapping[str, Mapping[str, str]] | None = None,
) -> Table:
    """A table for a terminal: text wraps where there is no room, a number never.

    Args:
        columns: in order; the headings.
        rows: at least one.
        styles: for some columns the Rich style of each text in them.
    """
    styles = styles or {}
    rows = [{name: printable(row[name]) for name in columns} for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    numbers = numeric(columns, rows)
    for name in columns:
        # Rich takes the longest word as the least width, though `95 % interval` must stay whole.
        heading = Text(printable(name))
        widest = max(len(heading), *(len(row[name]) for row in rows))
        if name in numbers:
            table.add_column(heading, justify="right", no_wrap=True, min_width=widest)
        else:
            table.add_column(heading, overflow="fold", min_width=min(widest, MAX_NAME))
    for row in rows:
        table.add_row(
            *(Text(row[name], styles.get(name, {}).get(row[name], "")) for name in columns)
        )
    return table


def shown_table(columns: Sequence[str], rows: Sequence[Line], console: Console) -> RenderableType:
    """`screen_table`, or `table_lines` where the output is no terminal."""
    if console.is_terminal:
        return screen_table(columns, rows)
    return Text("\n".join(table_lines(columns, rows)))


def narrowest(columns: Sequence[str], rows: Sequence[Line]) -> int:
    """The columns of the narrowest terminal that `screen_table` fits on."""
    console = rich_console(width=UNLIMITED)
    return console.measure(screen_table(columns, rows)).minimum


def table_lines(columns: Sequence[str], rows: Sequence[Line]) -> list[str]:
    """A table as plain text for files and pipes, headings first: nothing is wrapped or cut."""
    console = rich_console(width=UNLIMITED, color_system=None)
    lines = console.render_lines(screen_table(columns, rows), pad=False)
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


def fitting(
    columns: Sequence[str], rows: Sequence[Line], *, width: int, dispensable: Iterable[str]
) -> list[str]:
    """The columns without the dispensable ones, dropped in order until the rest fits a width."""
    left = list(columns)
    for name in dispensable:
        if narrowest(left, rows) <= width:
            break
        if name in left:
            left.remove(name)
    return left


def markdown_table(columns: Sequence[str], rows: Sequence[Line]) -> str:
    """A table in Markdown, numbers aligned to the right."""
    numbers = numeric(columns, rows)
    marks = ["---:" if name in numbers else "---" for name in columns]
    lines = [list(columns), marks, *([row[name] for name in columns] for row in rows)]
    return "".join(f"| {' | '.join(map(markdown, line))} |\n" for line in lines)


def markdown(text: str) -> str:
    """Text, in a line, that Markdown and the HTML that may stand in it show as it is."""
    line = printable(" ".join(text.splitlines()))
    return html.escape(re.sub(r"([\\`*|\[\]])", r"\\\1", line), quote=False)


def csv_table(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """A table as CSV by RFC 4180, but with `\\n` as the line ending."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    heads = {name: name for name in columns}  # keys of jobs are among them, which others may write
    lines: Iterable[Mapping[str, object]] = itertools.chain([heads], rows)
    writer.writerows({name: defused(cell) for name, cell in row.items()} for row in lines)
    return file.getvalue()


def defused(cell: object) -> object:
    """A cell of a CSV file that no spreadsheet takes for a formula: with a quote before it.

    A spreadsheet would run one that starts programs or sends data (owasp.org, CSV injection).
    """
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    is_formula = text.lstrip(" ").startswith(FORMULA) and not NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text


def latex_table(
    columns: Sequence[str],
    rows: Sequence[Line],
    caption: str,
    *,
    rules_before: Collection[int],
) -> str:
    """A table for LaTeX's booktabs.

    Args:
        columns: in order; the headings.
        rows: at least one.
        caption: plain text.
        rules_before: indices of the rows below a rule.
    """
    numbers = numeric(columns, rows)
    kinds = "".join("r" if name in numbers else "l" for name in columns)

    def line(cells: Iterable[str]) -> str:
        return " & ".join(map(latex, cells)) + r" \\"

    body = []
    for index, row in enumerate(rows):
        if index in rules_before:
            body.append(r"\midrule")
        body.append(line(row[name] for name in columns))
    return "\n".join([
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{2.2pt}",
        rf"\caption{{{latex(caption)}}}",
        rf"\begin{{tabular}}{{@{{}}{kinds}@{{}}}}",
        *(r"\toprule", line(columns), r"\midrule", *body, r"\bottomrule"),
        r"\end{tabular}",
        r"\end{table}",
        "",
    ])  # fmt: skip


def latex(text: str) -> str:
    """Text with everything escaped that LaTeX would interpret."""
    return printable(" ".join(text.splitlines())).translate(_LATEX)
