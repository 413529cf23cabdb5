"""Formats tables for a terminal, and as plain text, Markdown, CSV, LaTeX and HTML."""

import html
import re
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from harness.system.console import printable, rich_console

if TYPE_CHECKING:
    import pandas

GAP = 2  # spaces between two columns
MAX_NAME = 16  # texts up to this number of characters are never wrapped
UNLIMITED = 100_000  # width of a file or a pipe, in characters

# A cell that starts with one of these characters is a formula for a spreadsheet. The last four
# characters are full-width.
FORMULA = (*"=+-@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def numeric(cells: "pandas.DataFrame") -> set[str]:
    """Return the names of the columns with numbers only, which tables align to the right."""
    return {name for name in cells if cells[name].str.match(r"[-0-9]|$").all()}


def screen_table(cells: "pandas.DataFrame") -> Table:
    """Return a table for a terminal; texts may be wrapped, numbers never.

    Args:
        cells: the texts of the table, at least one row; the names of the columns are the headings.
    """
    cells = cells.map(printable)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    numbers = numeric(cells)
    for name in cells:
        # Rich would wrap a heading such as `95 % interval` between its words.
        heading = Text(printable(name))
        widest = max(len(heading), *map(len, cells[name]))
        if name in numbers:
            table.add_column(heading, justify="right", no_wrap=True, min_width=widest)
        else:
            table.add_column(heading, overflow="fold", min_width=min(widest, MAX_NAME))
    for row in cells.itertuples(index=False):
        table.add_row(*map(Text, row))
    return table


def narrowest(cells: "pandas.DataFrame") -> int:
    """Return the width, in characters, of the narrowest terminal that `screen_table` fits."""
    return rich_console(width=UNLIMITED).measure(screen_table(cells)).minimum


def table_lines(cells: "pandas.DataFrame") -> list[str]:
    """Return a table as unwrapped lines of plain text, headings first, for files and pipes."""
    console = rich_console(width=UNLIMITED, color_system=None)
    lines = console.render_lines(screen_table(cells), pad=False)
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


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
    """Return a CSV cell; a quote precedes a formula, so that spreadsheets show the formula as text.

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


def html_table(cells: "pandas.DataFrame", kind: str = "") -> str:
    """Return an HTML table of the CSS class `kind`; the first column contains row headings."""
    import pandas

    first = cells.columns[0]
    rows = cells.set_index(first).rename_axis(index=None, columns=first)
    with pandas.option_context("display.max_colwidth", None):
        return str(rows.to_html(border=0, classes=kind or None))
