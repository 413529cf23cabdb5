"""Tables as text: nothing that stands in a cell is taken for markup."""

import csv
import io
import re

import pytest
from rich.console import Console

from harness.report.text_tables import (
    csv_table,
    fitting,
    latex,
    latex_table,
    markdown,
    markdown_table,
    screen_table,
    table_lines,
)
from harness.system.console import rich_console

COLUMNS = ("job", "test %", "note")
ROWS = [
    {"job": "lstm", "test %": "88.22", "note": "a|b"},
    {"job": "stacked_lstm", "test %": "9.10", "note": ""},
]


def test_columns_are_as_wide_as_they_need() -> None:
    """Names stand at the left, numbers at the right, and no line ends in blanks."""
    assert table_lines(COLUMNS, ROWS) == [
        "job           test %  note",
        "lstm           88.22  a|b",
        "stacked_lstm    9.10",
    ]


def test_a_narrow_screen_goes_without_what_is_dispensable() -> None:
    """Columns go in their order until the rest fits, and no longer."""
    assert fitting(COLUMNS, ROWS, width=26, dispensable=["note", "test %"]) == [*COLUMNS]
    assert fitting(COLUMNS, ROWS, width=25, dispensable=["note", "test %"]) == ["job", "test %"]
    assert fitting(COLUMNS, ROWS, width=5, dispensable=["note", "test %"]) == ["job"]


@pytest.mark.parametrize("width", [80, 40, 26])
def test_a_terminal_wraps_names_and_never_a_number(width: int) -> None:
    """No line is too wide; a long name goes on below itself, and every number is whole."""
    name = "lstm batch_size=128 learning_rate=0.0003"
    rows = [*ROWS, {"job": name, "test %": "88.1234", "note": ""}]
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    columns = fitting(COLUMNS, rows, width=width, dispensable=["note"])
    console.print(screen_table(columns, rows))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    text = "\n".join(lines)
    assert re.findall(r" (\d+\.\d+)(?: |$)", text, re.MULTILINE) == ["88.22", "9.10", "88.1234"]
    assert "…" not in text
    assert "batch_size=128" in text  # a name is broken between its words first


def test_markdown_keeps_its_columns() -> None:
    """A bar inside of a cell ends no cell."""
    assert markdown_table(COLUMNS, ROWS).splitlines() == [
        "| job | test % | note |",
        "| --- | ---: | --- |",
        "| lstm | 88.22 | a\\|b |",
        "| stacked_lstm | 9.10 |  |",
    ]


def test_csv_is_read_back_as_it_was() -> None:
    """Commas, quotes and line ends in a cell come back, and None is empty."""
    row = {"job": 'a,"b"\nc', "test %": 0.1 + 0.2, "note": None}
    (read,) = csv.DictReader(io.StringIO(csv_table(COLUMNS, [row]), newline=""))
    assert read == {"job": row["job"], "test %": "0.30000000000000004", "note": ""}


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "=cmd|' /C calc'!A0", "+1+cmd|'x'!A0", "-2+3+cmd|'x'!A0", "@SUM(1)", "\t=1",
     "  =1", "\uff1d1", "+", "-", "\n=1"],
)  # fmt: skip
def test_a_cell_of_a_csv_file_is_no_formula(cell: str) -> None:
    """A quote before it: a spreadsheet shows the text, and runs nothing."""
    (read,) = csv.DictReader(io.StringIO(csv_table([cell], [{cell: cell}]), newline=""))
    assert read == {f"'{cell}": f"'{cell}"}


def test_a_cell_of_a_csv_file_ends_no_row() -> None:
    """A carriage return would start a row of its own, with a formula in its first cell."""
    assert csv_table(["a"], [{"a": "\r=1\x1b"}]) == "a\n\\x0d=1\\x1b\n".replace("x0d", "r")


@pytest.mark.parametrize("cell", [-1.5, "-1.5", "+2", "-3e-05", "lstm=2", "a-b", "", None, 7])
def test_a_number_of_a_csv_file_stays_one(cell: object) -> None:
    """Negative ones too."""
    (read,) = csv.DictReader(io.StringIO(csv_table(["a"], [{"a": cell}]), newline=""))
    assert read["a"] == ("" if cell is None else str(cell))


def test_markdown_shows_html_and_links_as_text() -> None:
    """Nothing in a cell, nor in a sentence, is an element, a picture or a link of the page."""
    row = {"job": "<img src=x onerror=alert(1)>", "test %": "1", "note": "[a](javascript:b)\n# c"}
    text = markdown_table(COLUMNS, [row])
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert r"\[a\](javascript:b) # c" in text
    assert len(text.splitlines()) == 3
    assert markdown("`a` *b*\x1b[2J") == r"\`a\` \*b\*\\x1b\[2J"


def test_no_table_moves_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences stand as text in it, on a terminal as in a file."""
    row = {"job": "a\x1b[2Jb", "test %": "1", "note": "\x9b31m\u202e"}
    rich_console(force_terminal=True, color_system=None).print(screen_table(COLUMNS, [row]))
    shown = capsys.readouterr().out + "".join(table_lines(COLUMNS, [row]))
    assert shown.count("a\\x1b[2Jb") == 2
    assert not {"\x1b[2J", "\x9b", "\u202e"} & {shown[i : i + n] for i in range(len(shown))
                                               for n in (1, 4)}  # fmt: skip


def test_latex_prints_every_character() -> None:
    """What LaTeX takes for an order is escaped, a rule stands where it is asked for."""
    assert latex(r"50 % of $x_1^2 & #{a}~\b <c>") == (
        r"50 \% of \$x\_1\textasciicircum{}2 \& \#\{a\}\textasciitilde{}\textbackslash{}b "
        r"\textless{}c\textgreater{}"
    )
    lines = latex_table(COLUMNS, ROWS, "All_of it", rules_before={1}).splitlines()
    assert r"\caption{All\_of it}" in lines
    assert lines[lines.index(r"\midrule", lines.index(r"lstm & 88.22 & a|b \\")) + 1] == (
        r"stacked\_lstm & 9.10 &  \\"
    )
