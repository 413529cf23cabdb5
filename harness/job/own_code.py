"""Functions that a user writes: networks, losses, optimizers and callbacks.

A job refers to a function as `file.py:function` or `package.module:function`. The job's table
`[code]` contains the source of the function's module, and the sources of all modules that this
module imports, directly or indirectly, from its own folder or package. The job's identity depends
on all sources in `[code]`. Commands that use an existing run execute the code from `[code]`, and do
not read the user's files. Code outside of `[code]` can't import the modules in `[code]`.
"""

import ast
import builtins
import contextlib
import copy
import hashlib
import importlib.util
import inspect
import os
import stat
import symtable
import sys
import traceback
import types
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from harness.config import FORM
from harness.errors import InputError, Interrupted, OwnCodeError, RunError, suggest
from harness.system.files import distrust, read_plain_file

TRUST = "HARNESS_TRUST_CODE"  # set by --trust-code
TRUSTED = ContextVar("TRUSTED", default=False)
ALIAS = "own_code_"  # the beginning of the names of all modules of jobs in `sys.modules`
MAX_CHARACTERS = 400_000  # the largest number of characters in `[code]`


def keep_code(reference: str, base: Path, code: dict[str, str], kept: Mapping[str, str]) -> str:
    """Add the missing sources of a function to a job's `code`, without running user code.

    Args:
        reference: the function, as `file.py:function` or `package.module:function`.
        base: the folder that relative paths start from.
        code: the sources; each key is a path relative to the folder of the file or package.
        kept: the sources in the job file, which are used instead of the files on the disk.

    Returns:
        The reference that the job stores. If `reference` names a file, the result contains the
        file's path in `code`, not its path on the disk.

    Raises:
        InputError: if the function is missing; if a source is unreadable, is not Python, is too
            large, could have been changed by another user, or has the name of another source or of
            a standard module of Python.
    """
    target, _, function = reference.partition(":")
    root = top = None
    if target.endswith(".py"):
        # `Path.expanduser` is not used, because it may raise an error.
        path = Path(os.path.normpath(base / os.path.expanduser(target)))  # noqa: PTH111
        module, root = path.stem, path.parent
        stored, is_kept = f"{path.name}:{function}", _path_of(module, kept.__contains__) == target
    else:
        module, top = target, target.partition(".")[0]
        stored, is_kept = reference, _path_of(module, kept.__contains__) is not None
    first = top or module
    if not first.isidentifier() or first in sys.stdlib_module_names:
        raise InputError(
            f"{first} should consist of letters, digits and _, and should not be the name of a "
            "standard module of Python; rename the file"
        )
    if not is_kept:
        for path_in, source in _sources(root or _root_of(module), module, top):
            if code.setdefault(path_in, source) != source:
                raise InputError(
                    f"the job already has another file {path_in}; rename one of the two"
                )
        if (size := sum(map(len, code.values()))) > MAX_CHARACTERS:
            raise InputError(
                f"the job needs {len(code)} files with {size:,} characters, imported files "
                f"included; at most {MAX_CHARACTERS:,} characters are allowed; move some files "
                "into a package, and install the package"
            )
    _check_function(code, module, function)
    return reference if is_kept else stored


def check_trusted(path: Path) -> None:
    """Refuse code that another user could have written or changed, unless the user trusts all code.

    Raises:
        InputError: if another user could have written or changed the code.
    """
    if is_trusting():
        return
    for each in (path, path.parent, path.resolve().parent):
        if reason := distrust(each):
            raise InputError(
                f"{each}: {reason}, so another user could change the code, which runs with your "
                "permissions; check the code, then remove the write permission (chmod go-w), or "
                f"trust the code (--trust-code or {TRUST}=1)"
            )


def source_digest(source: str) -> str:
    """Return the first 8 digits of a source's sha256, for tables and messages."""
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def close_folder(folder: Path, code: Mapping[str, str]) -> None:
    """Remove other users' permission to write to a folder whose job contains code.

    `check_trusted` refuses code that another user could change. If the user trusts all code, the
    folder keeps its permissions.
    """
    if code and not is_trusting():
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))


def is_trusting() -> bool:
    """Whether the user trusts the code of other users, by `--trust-code` or HARNESS_TRUST_CODE."""
    return TRUSTED.get() or os.environ.get(TRUST) == "1"


@contextlib.contextmanager
def trusting(is_trusted: bool) -> Iterator[None]:
    """If `is_trusted`, trust the code of all users in this thread while the `with` block runs."""
    token = TRUSTED.set(is_trusted)
    try:
        yield
    finally:
        TRUSTED.reset(token)


def _root_of(module: str) -> Path:
    """Return the first folder of `sys.path` that contains a module's source."""
    for folder in sys.path:
        root = Path(folder or ".").absolute()
        if _path_in(root, module):
            return root
    raise InputError(f"sys.path has no Python source of {module}; install it, or name its file")


def _path_of(module: str, exists: Callable[[str], bool]) -> str | None:
    """Return the path of a module's source, `….py` or `…/__init__.py`; None if no file exists."""
    stem = module.replace(".", "/")
    return next(filter(exists, (f"{stem}.py", f"{stem}/__init__.py")), None)


def _path_in(root: Path, module: str) -> str | None:
    return _path_of(module, lambda path: (root / path).is_file())


def _sources(root: Path, module: str, top: str | None) -> Iterator[tuple[str, str]]:
    """Yield the path and source of a module and of its direct and indirect imports in `root`.

    Args:
        top: the package whose modules are read; None to read any imported module in `root`.
    """
    waiting, seen = [module], set()
    while waiting:
        name = waiting.pop()
        parents = name.split(".")
        for each in (".".join(parents[:i]) for i in range(1, len(parents) + 1)):
            first = each.partition(".")[0]
            if each in seen or first in sys.stdlib_module_names:
                continue
            seen.add(each)
            # The package `harness` is not the user's code, even if `root` contains it.
            if first != top if top else first == "harness" != module:
                continue
            path = _path_in(root, each)
            if path is None:
                if each == module:
                    # The module's file is missing, so this call raises an error.
                    _read(root / f"{module}.py")
                continue
            source = _read(root / path)
            yield path, source
            package = each if path.endswith("__init__.py") else each.rpartition(".")[0]
            waiting += _imports(_parsed(source, path), package)


def _read(path: Path) -> str:
    try:
        check_trusted(path)
        source = read_plain_file(path, MAX_CHARACTERS).decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}; write {FORM}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    return source if source.endswith("\n") or not source else f"{source}\n"


def _parsed(source: str, path: str) -> ast.Module:
    try:
        symtable.symtable(source, path, "exec")  # finds errors that `ast.parse` does not find
        return ast.parse(source)
    # ValueError: the source contains a NUL byte; the last two: an expression is too long.
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        why = error.args[0] if error.args else type(error).__name__
        raise InputError(f"{path}, line {line}: is not Python: {why}") from None


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if package else []
            base = parts[: len(parts) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            if stem:
                yield from (stem, *(f"{stem}.{alias.name}" for alias in node.names))


def _check_function(code: Mapping[str, str], module: str, function: str) -> None:
    path = _path_of(module, code.__contains__) or ""
    tree = _parsed(code[path], path)
    has_star = any(isinstance(each, ast.alias) and each.name == "*" for each in ast.walk(tree))
    symbols = symtable.symtable(code[path], path, "exec").get_symbols()
    names = [each.get_name() for each in symbols if each.is_assigned() or each.is_imported()]
    if function not in names and not has_star:
        raise InputError(f"{path} has no function {function}{suggest(function, names)}")


class _Code:
    """The Python modules that are made from the sources in a job.

    An `import` in the job's code looks for a module in the job first, and then elsewhere. Only the
    job's code can import the job's modules. Two jobs with files of the same name do not share a
    module.
    """

    def __init__(self, code: Mapping[str, str]) -> None:
        self.code = dict(code)
        content = "\0".join(part for item in sorted(code.items()) for part in item)
        self.alias = f"{ALIAS}{hashlib.sha256(content.encode()).hexdigest()[:12]}"
        self.builtins = {**vars(builtins), "__import__": self._import}

    def module(self, name: str) -> types.ModuleType:
        """Import a module; the packages that contain it are imported first."""
        if (known := sys.modules.get(f"{self.alias}.{name}")) is not None:
            return known
        parent, _, last = name.rpartition(".")
        above = self.module(parent) if parent else None
        path = _path_of(name, self.code.__contains__)
        module = types.ModuleType(f"{self.alias}.{name}")
        is_package = path is None or path.endswith("__init__.py")
        module.__package__ = module.__name__ if is_package else module.__name__.rpartition(".")[0]
        if is_package:
            module.__path__ = []
        module.__dict__["__builtins__"] = self.builtins
        source = "" if path is None else self.code[path]
        if path is not None:
            # Tracebacks show source lines: linecache asks the loader for the source of this path.
            module.__file__ = f"{self.alias}/{path}"
            module.__loader__ = types.SimpleNamespace(get_source=lambda _name: source)
        sys.modules[module.__name__] = module
        try:
            if path is not None:
                exec(compile(source, str(module.__file__), "exec"), module.__dict__)  # noqa: S102 - the user's own code
        except BaseException:
            del sys.modules[module.__name__]
            raise
        if above is not None:
            setattr(above, last, module)
        return module

    def _has(self, name: str) -> bool:
        stem = name.replace(".", "/")
        return any(path == f"{stem}.py" or path.startswith(f"{stem}/") for path in self.code)

    def _import(self, name: str, *rest: Any, **named: Any) -> types.ModuleType:
        """Import a module as `__import__` does, but search the modules of the job first."""
        arguments = dict(zip(("globals", "locals", "fromlist", "level"), rest, strict=False))
        arguments |= named
        absolute, level = name, arguments.get("level", 0)
        if level:
            package = str((arguments.get("globals") or {}).get("__package__"))
            absolute = importlib.util.resolve_name("." * level + name, package)
            absolute = absolute.removeprefix(self.alias).lstrip(".")
        if not self._has(absolute):
            return builtins.__import__(name, **arguments)
        module, names = self.module(absolute), arguments.get("fromlist")
        if not names:
            return self.module(absolute.partition(".")[0])
        for each in names:
            if not hasattr(module, each) and self._has(f"{absolute}.{each}"):
                self.module(f"{absolute}.{each}")
        return module


def forget_modules() -> None:
    """Forget the modules of all jobs; the next use of a module runs its source again.

    Without `forget_modules`, a run would begin with the global variables that an earlier run in the
    same process left in the modules.
    """
    for name in [name for name in sys.modules if name.startswith(ALIAS)]:
        del sys.modules[name]


def load_function(
    code: Mapping[str, str],
    reference: str,
    *,
    where: str,
    form: str = "()",
    given: Sequence[Any] = (),
    named: Mapping[str, Any] = {},
) -> Callable[..., Any]:
    """Import a job's function, and check that the function accepts example arguments.

    Args:
        where: the beginning of error messages, such as `model.architecture`.
        form: the expected arguments as text for error messages, such as `(labels, probabilities)`.
        given: an example value for each positional argument.
        named: an example value for each keyword argument.

    Raises:
        InputError: if the module raises an error or lacks the function, or if the function does not
            accept the example arguments.
    """
    target, _, name = reference.partition(":")
    where = f"{where} = {reference!r}"
    with own_errors(where):
        module = _Code(code).module(target.removesuffix(".py"))
    try:
        function: Callable[..., Any] = getattr(module, name)
        inspect.signature(function).bind(*given, **named)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{where}: should be a function of {form}: {error}") from None
    return function


@contextlib.contextmanager
def own_errors(where: str) -> Iterator[None]:
    """Turn an error in a user's function into a message of one line, with file and line number.

    Raises:
        OwnCodeError: if the `with` block raises any error except InputError, RunError and
            Interrupted.
    """
    try:
        yield
    except (InputError, RunError, Interrupted):
        raise
    except (Exception, SystemExit) as error:
        message = " ".join(str(error).split())[:300]
        raise OwnCodeError(f"{where}: {_place(error)}{type(error).__name__}: {message}") from None


def _place(error: BaseException) -> str:
    """Return the place of an error in the user's code, such as `mynet.py, line 12: `."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        alias, _, path = frame.f_code.co_filename.partition("/")
        if alias.startswith(ALIAS):
            place = f"{path}, line {line}: "
    return place


class OptionReader(UserDict[str, Any]):
    """The options for a user's function; this mapping records which options the function reads."""

    def __init__(self, options: Mapping[str, Any], table: str) -> None:
        """Copy the options of a table such as `model.options`.

        If the user's function changes the copied options, the job's options stay the same.
        """
        super().__init__(copy.deepcopy({**options}))
        self.table, self.given, self.read = table, {*options}, set[str]()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        if name not in self.data:
            raise KeyError(f"{self.table}.{name} is missing; set it in [{self.table}]")
        return self.data[name]

    def __contains__(self, name: object) -> bool:
        self.read.add(str(name))
        return name in self.data

    def __iter__(self) -> Iterator[str]:
        self.read.update(self.data)  # for example, `**options` reads all options
        return iter(self.data)

    def __or__(self, other: Any) -> Any:
        return {**self, **other}

    def __ror__(self, other: Any) -> Any:
        return {**other, **self}

    def check(self, where: str) -> None:
        """Refuse options that the user's function did not read.

        Raises:
            InputError: if the job sets an option that the function did not read.
        """
        for name in (self.given & self.data.keys()) - self.read:
            raise InputError(
                f"{self.table}.{name} = {self.data[name]!r}: {where} reads no such option"
                f"{suggest(name, sorted(self.read)) or '; remove it'}"
            )
