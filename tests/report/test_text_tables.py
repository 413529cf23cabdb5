"""Tables as text, with all markup in cells escaped."""

import io
import re

import pandas
import pytest
from rich.console import Console

from harness.report.text_tables import (
    defused,
    html_table,
    latex_table,
    markdown,
    markdown_table,
    screen_table,
    table_lines,
)
from harness.system.console import rich_console

ROWS = [
    {"job": "lstm", "test %": "88.22", "note": "a|b"},
    {"job": "stacked_lstm", "test %": "9.10", "note": ""},
]


def cells_of(rows: list[dict[str, str]]) -> pandas.DataFrame:
    return pandas.DataFrame(rows)


@pytest.mark.parametrize("width", [80, 26])
def test_a_terminal_wraps_names_and_never_a_number(width: int) -> None:
    """No line is too wide, a long name wraps, and numbers are complete."""
    name = "lstm batch_size=128 learning_rate=0.0003"
    rows = [*ROWS, {"job": name, "test %": "88.1234", "note": ""}]
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(screen_table(cells_of(rows).iloc[:, : 2 if width < 40 else 3]))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    text = "\n".join(lines)
    assert re.findall(r" (\d+\.\d+)(?: |$)", text, re.MULTILINE) == ["88.22", "9.10", "88.1234"]
    assert "…" not in text
    assert "batch_size=128" in text  # a name wraps between words


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
    """This holds for cells and for sentences."""
    row = {"job": "<img src=x onerror=alert(1)>", "test %": "1", "note": "[a](javascript:b)\n# c"}
    text = markdown_table(cells_of([row]))
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert r"\[a\](javascript:b) # c" in text
    assert len(text.splitlines()) == 3
    assert markdown("`a` *b*\x1b[2J") == r"\`a\` \*b\*\\x1b\[2J"


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """This holds on a terminal and in a file."""
    row = {"job": "a\x1b[2Jb", "test %": "1", "note": "\x9b31m\u202e"}
    rich_console(force_terminal=True, color_system=None).print(screen_table(cells_of([row])))
    shown = capsys.readouterr().out + "".join(table_lines(cells_of([row])))
    assert shown.count("a\\x1b[2Jb") == 2
    assert not {"\x1b[2J", "\x9b", "\u202e"} & {shown[i : i + n] for i in range(len(shown))
                                               for n in (1, 4)}  # fmt: skip


def test_latex_escapes_special_characters() -> None:
    """A rule separates the last `num_below` rows."""
    rows = [*ROWS, {"job": r"50 % of $x_1^2 & #{a}~\b", "test %": "1", "note": "a\nb"}]
    lines = [
        " ".join(line.split()) for line in latex_table(cells_of(rows), num_below=2).split("\n")
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
    text = html_table(cells_of([{"job": "<b>", "no&te": "x" * 200}]))
    assert "<th>&lt;b&gt;</th>" in text
    assert f"<td>{'x' * 200}</td>" in text
    assert "<th>no&amp;te</th>" in text
