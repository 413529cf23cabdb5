"""Reads job files, applies the user's `--set` options, and checks the jobs."""

import difflib
import errno
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness import PROJECT
from harness.config import Tables, is_free, is_reference, keys_of
from harness.errors import InputError, about, did_you_mean, suggest
from harness.job.keys import FACTS, TABLES, DataConfig, Job
from harness.job.own_code import check_trusted, keep_code
from harness.system.console import quoted
from harness.system.files import raise_unless_missing, read_plain_file

# Maps the type of a pydantic error, or the key `name`, to the rule that the harness's message
# states. pydantic's message would only ask for a `valid` value, or show a regular expression.
RULES = {
    "bool_type": "should be true or false",
    "int_type": "should be an integer, such as 8",
    "float_type": "should be a number, such as 0.001",
    "string_type": "should be a string in quotes",
    "dict_type": "should be a table",
    "list_type": 'should be a list, such as [1, 2.5] or ["file.py:function"]',
    "name": "should be 1 to 100 letters, digits, dots, - and _, and begin with a letter or digit; "
    "set name in the file, or rename the file",
}
# The largest size of a job file in bytes, enough for a `[code]` table of
# `own_code.MAX_CHARACTERS` characters.
MAX_JOB_BYTES = 4_000_000


def load_job(path: Path, overrides: Sequence[str] = (), seed: int | None = None) -> Job:
    """Read a job file, apply `--set` overrides and the seed, and check the job.

    Args:
        path: the TOML file.
        overrides: the `--set` options, `table.key=value`; the value is TOML or text.
        seed: replaces `train.seed` of the file; None keeps the file's seed.

    Raises:
        InputError: if the job is refused; the message states key, value, rule and remedy.
        DiskError: if the disk fails.
    """
    content = read_toml_file(path)
    content.setdefault("name", path.stem)
    if "search" in content:
        raise InputError(
            f"job {path}: contains a [search] table; run the search with: harness tune "
            f"{quoted(path)}"
        )
    origins = put_overrides(content, overrides)
    if seed is not None:
        if chosen := origins.get("train.seed"):
            raise InputError(
                f"{chosen}: can't be combined with seed {seed} from --seed, --seeds or --array; "
                "give the seed only once"
            )
        origins |= put_overrides(content, [f"train.seed={seed}"])
    return complete(check_job(content, path, origins), path, origins)


def complete(job: Job, path: Path, origins: Mapping[str, str]) -> Job:
    """Return the job with absolute paths and the sources of its custom functions.

    The function runs no user code. Paths in the file are relative to the folder of the file. Paths
    in `--set` are relative to the current folder. A `~` at the beginning of a path stands for the
    home folder.

    Args:
        job: the job.
        path: the job's file.
        origins: the keys that options set, each with its option, such as
            `--set train.seed=2`.

    Raises:
        InputError: if a function's source is refused, for example because other users could have
            changed it.
    """
    if job.code:
        with about(f"job {path}: [code]"):
            check_trusted(path)
    content, code = job.model_dump(), dict(job.code)
    for key, facts in FACTS.items():
        base = Path.cwd() if key in origins else path.absolute().parent
        value = job.value(key)
        if facts.is_path and value:
            # `Path.expanduser` is not used, because it may raise an error.
            put_value(content, key, os.path.normpath(base / os.path.expanduser(value)))  # noqa: PTH111
        if facts.is_function:
            names = value if isinstance(value, list) else [value]
            if key in origins:
                names = [_of_file(str(name)) for name in names]
            stored = [
                stored_name(each, code, f"job {path}: {key}", base=base, kept=job.code)
                for each in names
            ]
            put_value(content, key, stored if isinstance(value, list) else stored[0])
    content["code"] = code
    return check_job(content, path, origins)


def _of_file(name: str) -> str:
    """Put `./` before a value of `--set` that refers to a function in an existing file.

    For a reference with `./`, the harness reads the file on the disk. For a reference without `./`,
    the harness uses the source with the same path in `[code]`; if `[code]` has no such source, the
    harness reads the file on the disk.
    """
    is_file = is_reference(name) and os.path.isfile(name.partition(":")[0])  # noqa: PTH113
    return os.path.join(".", name) if is_file else name  # noqa: PTH118 - `Path` would drop the dot


def stored_name(
    name: Any, code: dict[str, str], where: str, *, base: Path, kept: Mapping[str, str]
) -> Any:
    """Return the value that the job stores for `name`; add a function's sources to `code`.

    Args:
        name: a reference to a function, such as `file.py:function`, or a plain value such as
            `lstm`, which stays as it is.
        code: the sources in the job; each key is the path of a source.
        where: the beginning of error messages, such as `job lstm.toml: model.architecture`.
        base: the folder that relative paths start from.
        kept: the sources in the job file.

    Raises:
        InputError: if the function's source code is refused.
    """
    with about(f"{where} = {name!r}"):
        return keep_code(name, base, code, kept) if is_reference(str(name)) else name


def data_settings(overrides: Sequence[str]) -> DataConfig:
    """Return the table `[data]` of a job with these `--set` overrides.

    Raises:
        InputError: if an override is refused.
    """
    content: dict[str, Any] = {"name": "data", "model": {"architecture": "lstm"}}
    origins = put_overrides(content, overrides)
    return check_job(content, Path("data"), origins).data


def check_job(content: dict[str, Any], path: Path, origins: Mapping[str, str] | None = None) -> Job:
    """Make a job from the content of a file, and check the job.

    Args:
        content: the tables and keys of the file.
        path: the path of the file, for error messages.
        origins: the keys that options set, each with its option, such as
            `--set train.seed=2`; for error messages.

    Raises:
        InputError: if the job is refused; the message states key, value, rule and remedy.
    """
    try:
        job = Job.model_validate(content)
    except ValidationError as error:
        raise InputError(explain(error, path, origins or {})) from None
    if broken := job.broken_rule():
        key, rule = broken
        raise InputError(f"job {path}: {key} = {shown(job.value(key))}: {rule}")
    return job


def put_overrides(
    content: dict[str, Any], overrides: Sequence[str], *, tables: Tables = TABLES
) -> dict[str, str]:
    """Write `--set` overrides into the content of a file; return each key with its option.

    Raises:
        InputError: if an override is not `table.key=value`, or if its key is unknown.
    """
    origins = {}
    for override in overrides:
        key, value = _parse_override(override, tables)
        origins[key] = f"--set {override}"
        put_value(content, key, value)
    return origins


def read_toml_file(path: Path) -> dict[str, Any]:
    """Return the content of a job file without checking its keys.

    Raises:
        InputError: if the file is unreadable or not TOML.
        DiskError: if the disk fails.
    """
    try:
        raw = read_plain_file(path, MAX_JOB_BYTES)
    except FileNotFoundError:
        folders = (PROJECT / "jobs", Path("jobs"), path.parent)
        others = {other.stem: other for folder in folders for other in folder.glob("*.toml")}
        near = difflib.get_close_matches(path.stem, others, n=1)
        remedy = f"did you mean {others[near[0]]}?" if near else "name a job such as jobs/lstm.toml"
        raise InputError(f"job {path}: no such file; {remedy}") from None
    except OSError as error:
        if error.errno != errno.EACCES:
            raise_unless_missing(error, path)
        raise InputError(
            f"job {path}: can't be read ({error.strerror}); name a TOML file such as jobs/lstm.toml"
        ) from None
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"job {path}: is not TOML: {error}; see jobs/lstm.toml") from None


def _parse_override(text: str, tables: Tables) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    key = name.strip()
    if not equals or not all(key.partition(".")):
        near = _same_key(key, tables) or ", such as train.epochs=8"
        if is_key(key, tables):
            near = f"; write --set {key}=VALUE"
        raise InputError(f"--set {text}: is not table.key=value{near}")
    if not is_key(key, tables):
        raise InputError(f"--set {text}: a job has no key {key}{suggest_key(key, tables)}")
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")
    except (ValueError, RecursionError):
        parsed = {}
    # A value that is not TOML, such as gru or a tab, is used as a string.
    return key, parsed["value"] if len(parsed) == 1 else value.strip() or value


def is_key(key: str, tables: Tables = TABLES) -> bool:
    """Whether a job may set a key; `model.options.NAME` is a key, whatever NAME is."""
    declared = keys_of(tables)
    table, _, name = key.rpartition(".")
    return key in declared or (bool(name) and table in declared and is_free(declared[table]))


def put_value(content: dict[str, Any], key: str, value: object) -> None:
    """Set a key such as `model.units` or `model.options.filters` in the content of a job."""
    *tables, name = key.split(".")
    for table in tables:
        content = content.setdefault(table, {})
        if not isinstance(content, dict):
            return  # not a table, so `check_job` will refuse the job
    content[name] = value


def suggest_key(name: str, tables: Tables = TABLES) -> str:
    """Return `; did you mean train.epochs?`, or a list of all keys if no key is similar."""
    return _same_key(name, tables) or suggest(name, [*keys_of(tables)])


def _same_key(name: str, tables: Tables) -> str:
    """Return `; did you mean TABLE.KEY?` if a table has KEY, the last part of `name`, else ""."""
    key = name.rpartition(".")[2]
    found = (known for known in keys_of(tables) if known.partition(".")[2] == key)
    return next((f"; did you mean {known}?" for known in found), "")


def explain(
    error: ValidationError, path: Path, origins: Mapping[str, str], *, tables: Tables = TABLES
) -> str:
    """Describe one of pydantic's errors in one line, and add the number of other errors.

    If one of the errors is an unknown key or table, the line describes this error, because a
    misspelled name may be the reason why another key is missing.
    """
    first, *others = sorted(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    where, value = f"job {path}: {key}", shown(first["input"])
    # Only `[model]` or `model.architecture` can be missing: no other key is required.
    if first["type"] == "missing":
        text = f"job {path}: model.architecture is missing; write architecture = 'lstm' in [model]"
    elif first["type"] == "extra_forbidden":
        near = "" if "." in key else did_you_mean(key, [*tables, "name"])
        text = f"{where} is not a key of a job{near or suggest_key(key, tables)}"
    elif first["type"] == "model_type":
        text = f"{where} = {value}: should be a table; write [{key}]"
    else:
        rule = RULES.get(key) or RULES.get(
            first["type"], first["msg"].replace("Input should", "should")
        )
        text = f"{origins.get(key, f'{where} = {value}')}: {rule[0].lower()}{rule[1:]}"
        text += did_you_mean(str(first["input"]), re.findall("'(.+?)'", rule))
    return text + (f" (and {len(others)} more)" if others else "")


def shown(value: object) -> str:
    """Return a value for a message, cut to 60 characters."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
