"""Tables as text, with all markup in cells escaped."""

import pandas
import pytest

from harness.report.html import html_table
from harness.report.summary import (
    defused,
    latex_table,
    markdown,
    markdown_table,
    plain_table,
)

ROWS = [
    {"job": "lstm", "test %": "88.22", "note": "a|b"},
    {"job": "stacked_lstm", "test %": "9.10", "note": ""},
]


def test_a_terminal_shows_all_of_a_wide_table() -> None:
    """Columns that do not fit follow below, with the job names repeated; nothing is cut."""
    name = "lstm batch_size=128 learning_rate=0.0003"
    cells = pandas.DataFrame([*ROWS, {"job": name, "test %": "88.1234", "note": "x" * 30}])
    assert plain_table(cells).splitlines()[1].split() == ["lstm", "88.22", "a|b"]
    lines = plain_table(cells, 60).splitlines()
    assert max(map(len, lines)) == len(name) + 2 + 30
    assert [line.split()[0] for line in lines if line] == [
        "job",
        "lstm",
        "stacked_lstm",
        "lstm",
    ] * 2
    assert {f"{name}  88.1234", f"{name}  {'x' * 30}"} <= {*lines}


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+1+cmd|'x'!A0", "-2+3+cmd|'x'!A0", "@SUM(1)", "\t=1", "  =1", "\uff1d1", "+", "\n=1"],
)
def test_a_formula_in_a_csv_file_is_quoted(cell: str) -> None:
    """A spreadsheet program then shows the formula as text."""
    assert defused(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", [-1.5, "-1.5", "+2", "-3e-05", "lstm=2", "a-b", "", None, 7])
def test_a_number_in_a_csv_file_is_not_quoted(cell: object) -> None:
    """A text without a formula is not quoted either."""
    assert defused(cell) == cell


def test_markdown_escapes_html_and_links() -> None:
    """Cells and sentences are escaped."""
    row = {"job": "<img src=x onerror=alert(1)>", "test %": "1", "note": "[a](javascript:b)\n# c"}
    text = markdown_table(pandas.DataFrame([row]))
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert r"\[a\](javascript:b) # c" in text
    assert text.splitlines()[1:2] == ["| --- | ---: | --- |"]  # numbers to the right
    assert len(text.splitlines()) == 3
    assert markdown("`a` *b*\x1b[2J") == r"\`a\` \*b\*\\x1b\[2J"


def test_control_characters_are_escaped() -> None:
    """Cells and headings show escape sequences as text."""
    row = {"job": "a\x1b[2Jb", "test %": "1", "no\x1b[2Jte": "\x9b31m\u202e"}
    shown = plain_table(pandas.DataFrame([row]))
    assert "a\\x1b[2Jb" in shown
    assert not {"\x1b", "\x9b", "\u202e"} & {*shown}


def test_latex_escapes_special_characters() -> None:
    """A rule separates the last `num_below` rows."""
    rows = [*ROWS, {"job": r"50 % of $x_1^2 & #{a}~\b", "test %": "1", "note": "a\nb"}]
    lines = [
        " ".join(line.split())
        for line in latex_table(pandas.DataFrame(rows), num_below=2).split("\n")
    ]
    assert lines[0] == r"\begin{tabular}{lrl}"
    assert r"job & test \% & note \\" in lines
    assert lines[lines.index(r"\midrule", lines.index(r"lstm & 88.22 & a|b \\")) + 1] == (
        r"stacked\_lstm & 9.10 & \\"
    )
    (last,) = (line for line in lines if line.startswith("50"))
    assert last == (
        r"50 \% of \$x\_1\textasciicircum 2 \& \#\{a\}\textasciitilde \textbackslash b & 1 & a b \\"
    )


def test_html_escapes_markup_and_cuts_nothing() -> None:
    """The cells of the first column are the headings of the rows."""
    text = html_table(pandas.DataFrame([{"job": "<b>", "no&te": "x" * 200}]), "")
    assert "<th>&lt;b&gt;</th>" in text
    assert f"<td>{'x' * 200}</td>" in text
    assert "<th>no&amp;te</th>" in text
