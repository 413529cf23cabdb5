"""`python -m tests.mutants`: whether the tests notice small mistakes put into the code.

Each mutant is one change in one place, drawn at random from those that an edit could make: another
comparison, sign, number or truth value, a `not` or a call less. Text, pictures, types, assertions
and how long something waits stay. A mutant is caught if a test fails or hangs.
"""

import argparse
import ast
import itertools
import queue
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests import guard
from tests.conftest import PROJECT

PACKAGES = (
    *("training", "compute", "data", "inputs", "slurm"),
    *("tuning", "oracles", "sweep_protocol", "report"),
)
PAIRS = {"<": "<=", ">": ">=", "==": "!=", "is": "is not", "in": "not in", "and": "or", "+": "-"}
OTHER_OPERATOR = PAIRS | {new: old for old, new in PAIRS.items()}
OTHER_OPERATOR |= {"*": "/", "/": "*", "//": "*", "%": "*"}
# Calls that only say something, or draw it.
LOOKS = re.compile(
    r"(.*\.)?(info|warning|print|add_note|echo|log|sleep)$|(.*\.)?(axes|axis|figure|plt)\."
)
WITHOUT_EFFECT = ("indent", "strict")  # arguments that no test can tell apart
PICTURES = ("pictures.py", "plots.py")
WAITING = re.compile(r"timeout|patience|poll|sleep|_s\b", re.IGNORECASE)
QUICK = "not slow and not cluster and not full"
END_TO_END = (PROJECT / "tests/training/test_train.py",)
TIMEOUT_S = 1800  # for the tests of a package, on a machine with more to do


@dataclass(frozen=True)
class Mutant:
    """The change of the bytes from `begin` to `end` of a module."""

    path: Path
    line: int
    begin: int
    end: int
    text: str

    def source(self) -> bytes:
        """The changed module."""
        whole = (PROJECT / self.path).read_bytes()
        return whole[: self.begin] + self.text.encode() + whole[self.end :]

    def __str__(self) -> str:
        before = (PROJECT / self.path).read_bytes()[self.begin : self.end].decode()
        return f"{self.path}:{self.line}: {' '.join(before.split())} -> {self.text.strip()}"


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of a module."""
    source = (PROJECT / path).read_bytes()
    lines = source.splitlines(keepends=True)
    starts = [sum(map(len, lines[:number])) for number in range(len(lines) + 1)]

    def begin(node: ast.expr | ast.stmt) -> int:
        return starts[node.lineno - 1] + node.col_offset

    def end(node: ast.expr | ast.stmt) -> int:
        return starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)

    def between(left: ast.expr, right: ast.expr) -> Iterator[Mutant]:
        text = source[end(left) : begin(right)].decode()
        old = text.strip(" \n()")
        if old in OTHER_OPERATOR:
            changed = text.replace(old, OTHER_OPERATOR[old])
            yield Mutant(path, left.lineno, end(left), begin(right), changed)

    for node in changeable(ast.parse(source)):
        if isinstance(node, ast.Compare | ast.BoolOp):
            values = node.values if isinstance(node, ast.BoolOp) else [node.left, *node.comparators]
            for left, right in itertools.pairwise(values):
                yield from between(left, right)
        elif isinstance(node, ast.BinOp):
            yield from between(node.left, node.right)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield Mutant(path, node.lineno, begin(node), begin(node) + len("not "), "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield Mutant(path, node.lineno, begin(node), end(node), str(not node.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            if not WAITING.search(lines[node.lineno - 1].decode()):
                other = node.value + 1 if isinstance(node.value, int) else node.value * 0.9 or 0.1
                yield Mutant(path, node.lineno, begin(node), end(node), repr(other))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield Mutant(path, node.lineno, begin(node), end(node), "pass")


def changeable(node: ast.AST) -> Iterator[ast.AST]:
    """The node and those below it, without types, decorators, assertions, text and pictures."""
    if isinstance(node, ast.Assert | ast.Raise | ast.JoinedStr):
        return
    if isinstance(node, ast.keyword) and node.arg in WITHOUT_EFFECT:
        return
    call = node.value if isinstance(node, ast.Expr) else node
    if isinstance(call, ast.Call) and LOOKS.match(ast.unparse(call.func)):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name not in {"annotation", "returns", "decorator_list"}:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from changeable(child)


def tests_of(module: Path) -> list[Path]:
    """The files of tests for a module: first those that import it, last the trainings."""
    name = ".".join(module.with_suffix("").parts)
    tests = sorted((PROJECT / "tests" / module.parts[1]).glob("test_*.py"))
    tests.sort(key=lambda path: name not in path.read_text())
    return [*tests, *END_TO_END]


def failure(copy: Path, tests: list[Path], marks: str, timeout_s: float = TIMEOUT_S) -> str:
    """The first test to fail in a copy of the project; "" if none does."""
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", "-m", marks]
    command += [str(path.relative_to(PROJECT)) for path in dict.fromkeys(tests)]
    try:
        done = subprocess.run(command, cwd=copy, capture_output=True, timeout=timeout_s, text=True)
    except subprocess.TimeoutExpired:
        return "it hangs"
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return "" if done.returncode == 0 else (failed or [done.stdout[-200:]])[0]


def main() -> int:
    """Draw mutants, try each in a copy of the project, print what became of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--number", type=int, default=60, help="how many mutants to draw")
    parser.add_argument("--seed", type=int, default=1, help="which ones are drawn")
    parser.add_argument("--marks", default=QUICK, help="the tests to run, as in pytest -m")
    parser.add_argument("--jobs", type=int, default=1, help="how many to try at a time")
    options = parser.parse_args()
    paths = [
        path
        for each in PACKAGES
        for path in sorted((PROJECT / "harness" / each).glob("*.py"))
        if path.name not in PICTURES
    ]
    mutants = [mutant for path in paths for mutant in mutants_of(path.relative_to(PROJECT))]
    drawn = random.Random(options.seed).sample(mutants, options.number)  # noqa: S311 - no secret
    guard.enter()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(options.jobs):
            copy = Path(folder, str(number), "project")
            shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns(".venv*", "runs", "logs"))
            copies.put(copy)
        every = [test for mutant in drawn for test in tests_of(mutant.path)]
        if by := failure(copy, every, options.marks, 10 * TIMEOUT_S):
            parser.error(f"without a mutant, {by} fails")

        def try_out(mutant: Mutant) -> str:
            copy = copies.get()
            try:
                (copy / mutant.path).write_bytes(mutant.source())
                by = failure(copy, tests_of(mutant.path), options.marks)
                shutil.copy(PROJECT / mutant.path, copy / mutant.path)
            finally:
                copies.put(copy)
            print(f"{mutant}: {by or 'SURVIVES'}", flush=True)  # noqa: T201
            return by

        with ThreadPoolExecutor(options.jobs) as pool:
            survivors = sum(not by for by in pool.map(try_out, drawn))
    print(f"{survivors} of {len(drawn)} survive, drawn from {len(mutants)}")  # noqa: T201
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
