"""Packages import in one direction, and modules do not import each other in a circle."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import PROJECT

HARNESS = PROJECT / "harness"
ORDER = (
    *("system", "job", "data", "slurm", "tracking"),
    *("board", "compute", "inference", "training", "report", "tuning", "doctor", "cli"),
)
MODULES = sorted(path for path in HARNESS.rglob("*.py") if path.name != "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts)


NAMES = {name_of(path) for path in MODULES}


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of `harness` that a module imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in whole if name in NAMES]
            yield from modules or ([node.module] if node.module in NAMES else [])
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in NAMES)


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Return the other modules that each module imports."""
    return {name_of(path): set(imported(path)) - {name_of(path)} for path in MODULES}


def level(name: str) -> int:
    """Return the place of a module's package in ORDER; 0 for modules outside of packages."""
    parts = name.split(".")
    return ORDER.index(parts[1]) + 1 if len(parts) > 2 else 0


def test_packages_are_those_of_the_order() -> None:
    """Every folder with code is in ORDER."""
    assert {path.parent.name for path in HARNESS.glob("*/*.py")} == set(ORDER)
    assert not list(HARNESS.glob("*/*/*.py"))


def test_imports_go_down() -> None:
    """A module imports only from its own package and from earlier packages in ORDER."""
    top = ("harness.__main__", "harness.api")
    pairs = [(own, name) for own, names in arrows().items() if own not in top for name in names]
    assert [pair for pair in pairs if level(pair[1]) > level(pair[0])] == []


def test_no_circles() -> None:
    """Repeated removal of all modules without imports leaves no module."""
    left = dict(arrows())
    while ends := [name for name, others in left.items() if not others & left.keys()]:
        for name in ends:
            del left[name]
    assert sorted(left) == []
