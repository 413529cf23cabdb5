"""Tables as text: aligned for a screen and a log, as Markdown, as CSV, as LaTeX."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence

GAP = "  "

Line = Mapping[str, str]  # a row of a table, by its columns

# Each character that LaTeX takes for an order, and what prints it.
_LATEX = str.maketrans({
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
})  # fmt: skip


def numeric(columns: Sequence[str], rows: Sequence[Line]) -> set[str]:
    """The columns of numbers, which stand at their right."""
    return {name for name in columns if all((row[name] or "0")[0] in "-0123456789" for row in rows)}


def table_lines(columns: Sequence[str], rows: Sequence[Line]) -> list[str]:
    """A table as text, its headings first, each column as wide as it needs, numbers at its right.

    Args:
        columns: in order; the headings.
        rows: one at least.
    """
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    numbers = numeric(columns, rows)
    return [
        GAP.join(
            row[name].rjust(widths[name]) if name in numbers else row[name].ljust(widths[name])
            for name in columns
        ).rstrip()
        for row in ({name: name for name in columns}, *rows)
    ]


def fitting(
    columns: Sequence[str], rows: Sequence[Line], width: int, dispensable: Iterable[str]
) -> list[str]:
    """The columns without as many of the dispensable ones, in their order, as a width asks for."""
    kept = list(columns)
    for name in dispensable:
        if len(table_lines(kept, rows)[0]) <= width and _widest(kept, rows) <= width:
            break
        kept.remove(name)
    return kept


def _widest(columns: Sequence[str], rows: Sequence[Line]) -> int:
    return max(map(len, table_lines(columns, rows)))


def markdown_table(columns: Sequence[str], rows: Sequence[Line]) -> str:
    """A table in Markdown, numbers at the right of their columns."""
    numbers = numeric(columns, rows)
    marks = ["---:" if name in numbers else "---" for name in columns]
    lines = [list(columns), marks, *([row[name] for name in columns] for row in rows)]
    return "".join(f"| {' | '.join(map(_markdown, line))} |\n" for line in lines)


def _markdown(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|")


def csv_table(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """A table as CSV after RFC 4180, but with a newline alone at the end of a line."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def latex_table(
    columns: Sequence[str], rows: Sequence[Line], caption: str, rules_before: Collection[int] = ()
) -> str:
    """A table for LaTeX's booktabs.

    Args:
        columns: in order; the headings.
        rows: one at least.
        caption: plain text.
        rules_before: numbers of rows that a rule stands above.
    """
    numbers = numeric(columns, rows)
    kinds = "".join("r" if name in numbers else "l" for name in columns)

    def line(cells: Iterable[str]) -> str:
        return " & ".join(map(latex, cells)) + r" \\"

    body = []
    for place, row in enumerate(rows):
        if place in rules_before:
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
    """Text as LaTeX prints it, whatever is in it."""
    return text.translate(_LATEX)
