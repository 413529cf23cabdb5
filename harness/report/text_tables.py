"""The one writer of tables: on a terminal, as plain text, Markdown, CSV and LaTeX."""

import html
import re
from collections.abc import Mapping, Sequence

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


def narrowest(columns: Sequence[str], rows: Sequence[Line]) -> int:
    """The columns of the narrowest terminal that `screen_table` fits on."""
    console = rich_console(width=UNLIMITED)
    return console.measure(screen_table(columns, rows)).minimum


def table_lines(columns: Sequence[str], rows: Sequence[Line]) -> list[str]:
    """A table as plain text for files and pipes, headings first: nothing is wrapped or cut."""
    console = rich_console(width=UNLIMITED, color_system=None)
    lines = console.render_lines(screen_table(columns, rows), pad=False)
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


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


def defused(cell: object) -> object:
    """A cell of a CSV file that no spreadsheet takes for a formula: with a quote before it.

    A spreadsheet would run one that starts programs or sends data (owasp.org, CSV injection).
    """
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    is_formula = text.lstrip(" ").startswith(FORMULA) and not NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text


def latex_table(columns: Sequence[str], rows: Sequence[Line], *, num_below: int) -> str:
    """A table for LaTeX's booktabs.

    Args:
        columns: in order; the headings.
        rows: at least one.
        num_below: rows at the end that stand below a rule.
    """
    import pandas

    kinds = "".join("r" if name in numeric(columns, rows) else "l" for name in columns)
    cells = [[printable(" ".join(row[name].splitlines())) for name in columns] for row in rows]
    table = pandas.DataFrame(cells, columns=[*columns])
    lines = table.to_latex(index=False, escape=True, column_format=kinds).splitlines()
    if num_below:
        lines.insert(-2 - num_below, r"\midrule")
    return "\n".join([*lines, ""])
