"""Formats tables for a terminal, and as plain text, Markdown, CSV, LaTeX and HTML."""

import html
import re
from typing import TYPE_CHECKING

from harness.system.console import printable

if TYPE_CHECKING:
    import pandas

# A spreadsheet interprets a cell that begins with one of these characters as a formula. The last
# four characters are full-width.
FORMULA = (*"=+-@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


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


def html_table(cells: "pandas.DataFrame", kind: str) -> str:
    """Return an HTML table of the CSS class `kind`; the first column contains row headings."""
    import pandas

    first = cells.columns[0]
    rows = cells.set_index(first).rename_axis(index=None, columns=first)
    with pandas.option_context("display.max_colwidth", None):
        return str(rows.to_html(border=0, classes=kind or None))
