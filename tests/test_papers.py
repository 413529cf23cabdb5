"""The READMEs name only existing files, headings, commands, options, settings and examples."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from harness.cli.main import app
from harness.job.search import load_search
from tests import job_keys
from tests.conftest import PROJECT
from tests.gpu.__main__ import parser as node_parser

CURRENT = [PROJECT / "README.md", *sorted(PROJECT.glob("*/README.md"))]
PAPERS = [*CURRENT, PROJECT / "CHANGELOG.md"]  # the changelog names removed commands
TO_WRITE = {"jobs/mine.toml", "jobs/tune_lstm_best.toml", "slurm/site.sh"}  # files that users write
SCRIPTS = {name: [name] for name in ("compare", "tensorboard", "tune")}  # all other scripts train
DOCTOR_OPTIONS = re.findall(r"--[a-z]+", node_parser().format_help())
FOR_TUNE_SH = {"--join", "--show", "--best", "--retrain"}


def of_each(papers: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("paper", papers, ids=lambda p: str(p.relative_to(PROJECT)))


def sources(*patterns: str) -> str:
    return "".join(file.read_text() for each in patterns for file in PROJECT.glob(each))


def code(paper: Path) -> Iterator[str]:
    """Yield the lines of code blocks, without comments, and the spans of code."""
    prose, text = "", paper.read_text()
    for number, part in enumerate(re.split(r"^ *```", text, flags=re.MULTILINE)):
        if number % 2:
            yield from (line.split(" #")[0] for line in part.splitlines()[1:])
        else:
            prose += part
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))


def slugs(paper: Path) -> set[str]:
    """Return the anchors of a paper's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", paper.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


def test_the_first_readme_is_short() -> None:
    """README.md has at most 120 lines."""
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 120


@of_each([*PAPERS, PROJECT / "jobs" / "FINDINGS.md"])
def test_links_lead_somewhere(paper: Path) -> None:
    """A relative link names a file of the project, and a heading in it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", paper.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = paper.parent / path if path else paper
        assert file.exists(), target
        assert not anchor or anchor in slugs(file), target


@of_each(PAPERS)
def test_files_exist(paper: Path) -> None:
    """A file in a span of code exists in the project or in the paper's folder."""
    for text in code(paper):
        for name in re.findall(r"(?<![\w./~-])[\w/.-]+\.(?:py|sh|toml|json)(?![\w/])", text):
            here = "/" in name and not name.startswith(("runs/", "/"))
            if here and name not in TO_WRITE:
                assert any((folder / name).exists() for folder in (PROJECT, paper.parent)), name


@of_each(PAPERS)
def test_tests_exist(paper: Path) -> None:
    """A name that begins with `test_` is a test, or a function of the package."""
    text = sources("harness/**/*.py", "tests/**/test_*.py")
    known = re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)
    assert {name for each in code(paper) for name in re.findall(r"^test_\w+$", each)} <= {*known}


@of_each(CURRENT)
def test_commands_and_options_exist(paper: Path) -> None:
    """`harness X` is a command, and the options after it are options of that command."""
    for text in code(paper):
        calls = re.findall(r"(?:^|[\s/])harness ([a-z][^|;&]*)", text)
        for script, rest in re.findall(r"slurm/(\w+)\.sh\b([^|;&]*)", text):
            if script == "doctor":
                assert set(re.findall(r"--[a-z]+", rest)) <= set(DOCTOR_OPTIONS), text
            elif script not in ("common", "site"):
                calls.append(shlex.join([*SCRIPTS.get(script, ["train", "JOB"])]) + rest)
        for call in calls:
            check_call(call)


def check_call(call: str) -> None:
    """Compare the options of a call with those of its command."""
    args = re.sub(r"[\[\]]", " ", call).split(" -- ")[0].split()
    command: Any = typer.main.get_command(app)
    while args and hasattr(command, "commands"):
        assert args[0] in command.commands, f"{args[0]}: known are {[*command.commands]}"
        command, args = command.commands[args[0]], args[1:]
    known = {option for each in command.params for option in each.opts} | {"--help"}
    if call.startswith("tune"):
        known |= FOR_TUNE_SH
    given = {arg.partition("=")[0] for arg in args if re.match(r"--?[a-z]", arg)}
    assert given <= known, f"harness {call}: {given - known}"


@of_each(CURRENT)
def test_settings_exist(paper: Path) -> None:
    """The code, the tests or the scripts contain every HARNESS_ variable of the paper."""
    texts = sources("harness/**/*.py", "tests/**/*.py", "slurm/*.sh"), paper.read_text()
    known, named = (set(re.findall(r"HARNESS_[A-Z_]+", text)) for text in texts)
    assert named - known == set()


def test_every_setting_of_a_site_is_explained() -> None:
    """slurm/README.md names every setting of site.example.sh."""
    example = (PROJECT / "slurm" / "site.example.sh").read_text()
    told = (PROJECT / "slurm" / "README.md").read_text()
    settings = set(re.findall(r"HARNESS_[A-Z_]+", example))
    assert settings <= set(re.findall(r"HARNESS_[A-Z_]+", told))


def test_the_table_of_keys_is_that_of_the_schema() -> None:
    """jobs/README.md describes every key; `python -m tests.job_keys` writes the table."""
    text = job_keys.README.read_text()
    assert job_keys.BEGIN in text
    assert text == job_keys.with_table(text)


def test_the_examples_are_jobs(tmp_path: Path) -> None:
    """The first TOML block of jobs/README.md is a valid search."""
    file = tmp_path / "mine.toml"
    file.write_text(job_keys.README.read_text().split("```toml\n")[1].split("```")[0])
    assert load_search(file).name == "mine"
