"""A job keeps, checks and runs the sources of custom functions."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from harness.cli.main import app
from harness.errors import InputError
from harness.job.job_file import load_job
from harness.job.keys import Job
from harness.job.own_code import (
    MAX_CHARACTERS,
    TRUST,
    close_folder,
    load_function,
    own_errors,
)
from harness.job.search import load_search

JOB = '[model]\narchitecture = "{}"\n'


@pytest.fixture(autouse=True)
def _own_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let nobody else write to the test's files."""
    monkeypatch.delenv(TRUST, raising=False)
    before = os.umask(0o022)
    yield
    os.umask(before)


def write(folder: Path, **sources: str) -> None:
    for name, source in sources.items():
        path = folder / f"{name.replace('_in_', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)


def load(folder: Path, reference: str = "mynet.py:build", *settings: str) -> Job:
    path = folder / "mine.toml"
    path.write_text(JOB.format(reference))
    return load_job(path, settings)


def kept(job: Job, folder: Path) -> Path:
    """Write the job into `job.toml`, as a run does, and return the path."""
    folder.mkdir()
    path = folder / "job.toml"
    path.write_text(job.to_toml())
    return path


def call(job: Job) -> Any:
    return load_function(job.code, job.model.architecture, where="model.architecture")()


def test_a_job_keeps_a_source_and_its_imports_from_the_same_folder(tmp_path: Path) -> None:
    """The job keeps no other file, not even a copy of the harness or a module named like Python's.

    The name of its function contains no folder.
    """
    imports = "import parts, json\nfrom harness.errors import InputError\n"
    write(
        tmp_path,
        mynet=f"{imports}def build(): return parts.NUMBER, json.dumps(1), InputError\n",
        parts="NUMBER = 7",
        **dict.fromkeys(("unused", "json", "harness_in___init__", "harness_in_errors"), "BROKEN"),
    )
    job = load(tmp_path)
    assert job.code.keys() == {"mynet.py", "parts.py"}
    assert call(job) == (7, "1", InputError)
    (tmp_path / "jobs").mkdir()
    again = load(tmp_path / "jobs", "../mynet.py:build")
    assert (again.model.architecture, again.code) == ("mynet.py:build", job.code)


def test_a_job_with_as_much_code_as_allowed_can_be_read(tmp_path: Path) -> None:
    """The characters of the code may have 4 bytes in UTF-8."""
    text = "#😀😀😀😀😀😀😀😀\n"
    parts = {name: text * (MAX_CHARACTERS // 4 // len(text) - 1) for name in ("a", "b", "c", "d")}
    write(tmp_path, mynet="import a, b, c, d\ndef build(): return 3\n", **parts)
    job = load(tmp_path)
    assert load_job(kept(job, tmp_path / "run")) == job


def test_a_kept_source_is_used_instead_of_its_file(tmp_path: Path) -> None:
    """Changed sources change the identity of a job."""
    source = "'''Doc \\n.'''\ndef build(): return 'ä\\t\"\"\"'\n"
    write(tmp_path, mynet=source, parts="")
    job = load(tmp_path)
    path = kept(job, tmp_path / "run")
    write(tmp_path, mynet="def build(): return 2\n")
    again = load_job(path)
    assert again == job
    assert call(again) == call(job) == 'ä\t"""'
    changed = load(tmp_path)
    assert call(changed) == 2
    assert len({job.identity(), again.identity(), changed.identity()}) == 2


def test_two_files_of_the_same_name_are_refused(tmp_path: Path) -> None:
    """A function's file is not replaced by a file of the same name in another function's folder."""
    (tmp_path / "nets").mkdir()
    write(tmp_path, nets_in_mynet="def build(): return 1\ndef loss(): pass\n")
    write(tmp_path, mynet="def loss(): pass\n")
    path = tmp_path / "mine.toml"
    path.write_text(JOB.format("nets/mynet.py:build") + '[train]\nloss = "mynet.py:loss"\n')
    with pytest.raises(InputError, match=r"the job already has another file mynet\.py"):
        load_job(path)
    space = '[search]\ntrials = 2\n[search.space]\ntrain.loss = ["", "mynet.py:loss"]\n'
    path.write_text(JOB.format("nets/mynet.py:build") + space)
    with pytest.raises(InputError, match=r"the job already has another file mynet\.py"):
        load_search(path)


def test_an_option_names_the_file_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is refused if the job keeps a different source of this name, otherwise used."""
    write(tmp_path, mynet="def build(): return 1\ndef loss(): pass\n")
    job, options = load(tmp_path), ["model.architecture=mynet.py:build", "train.loss=mynet.py:loss"]
    path = kept(job, tmp_path / "run")
    for folder in (path.parent, tmp_path):
        monkeypatch.chdir(folder)
        assert load_job(path, options).code == job.code
    write(tmp_path, mynet="def build(): return 2\ndef loss(): pass\n")
    for option in options:
        with pytest.raises(InputError, match=r"the job already has another file mynet\.py"):
            load_job(path, [option])


def test_modules_of_a_package_import_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative and late imports use the kept modules, even if the package is gone."""
    late = "    import pkg.late\n    return parts.X, same is parts is pkg.late.p\n"
    write(
        tmp_path,
        pkg_in___init__="",
        pkg_in_parts="X = 1",
        pkg_in_late="from pkg import parts as p",
        pkg_in_nets=f"from . import parts\nimport pkg.parts as same\ndef build():\n{late}",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    job = load(tmp_path, "pkg.nets:build")
    for path in (tmp_path / "pkg").glob("*.py"):
        path.unlink()
    assert call(job) == (1, True)
    assert len(job.code) == 4


def test_jobs_with_sources_of_the_same_name_share_no_module(tmp_path: Path) -> None:
    """Code outside of a job can't import the job's modules."""
    jobs = []
    for number in (1, 2):
        write(tmp_path, mynet=f"import parts\ndef build(): return parts.N, {number}\n")
        write(tmp_path, parts=f"N = {number}\n")
        jobs.append(load(tmp_path))
    assert [call(job) for job in jobs] == [(1, 1), (2, 2)]
    with pytest.raises(ImportError):
        __import__("mynet")


def defaults(command: Any) -> list[object]:
    """Return the defaults of --trust-code in a command and all its subcommands."""
    inner = [defaults(each) for each in getattr(command, "commands", {}).values()]
    own = [each.default for each in command.params if "--trust-code" in each.opts]
    return sum(inner, own)


def test_no_command_trusts_the_code_of_other_users_by_default() -> None:
    """`--trust-code` is off in every command that has the option."""
    found = defaults(typer.main.get_command(app))
    assert len(found) > 10
    assert {*found} == {False}


@pytest.mark.parametrize(
    ("content", "reference", "says"),
    [
        (b"\xff\xfe", "mynet.py:build", "byte 0 is not UTF-8"),
        (b"x = '\x00'", "mynet.py:build", "is not Python"),
        (b"def build(:\n", "mynet.py:build", "mynet.py, line 1: is not Python: invalid syntax"),
        (b"def bild(): pass\n", "mynet.py:build", "has no function build; did you mean bild?"),
        (b"x = 1\n" + b"#" * MAX_CHARACTERS, "mynet.py:x", "it has over 400,000 bytes"),
        (b"", "other.py:build", "other.py: can't be read: No such file"),
        (b"", "my-net.py:build", "my-net should consist of letters"),
        (b"", "json.py:build", "not be the name of a standard module"),
        (b"", "json:loads", "not be the name of a standard module"),
        (b"", "missing_package.nets:build", "no Python source of"),
    ],
)
def test_a_bad_source_is_refused(tmp_path: Path, content: bytes, reference: str, says: str) -> None:
    """The line names the key, the value, the file and the rule."""
    (tmp_path / "mynet.py").write_bytes(content)
    with pytest.raises(InputError, match=f"^.*model.architecture = .*{re.escape(says)}.*$"):
        load(tmp_path, reference)


def test_code_that_others_can_change_needs_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source, its folder, and a job with sources are refused if others can write to them."""
    write(tmp_path, mynet="def build(): return 1\n")
    job = load(tmp_path)
    path = kept(job, tmp_path / "run")
    path.chmod(0o646)
    for changed, mode in ((tmp_path / "mynet.py", 0o646), (tmp_path, 0o777)):
        before = changed.stat().st_mode
        changed.chmod(mode)
        with pytest.raises(InputError, match=r"others can write to it.*--trust-code"):
            load(tmp_path)
        changed.chmod(before)
    with pytest.raises(InputError, match=r"job\.toml: others can write to it"):
        load_job(path)
    monkeypatch.setenv(TRUST, "1")
    assert load_job(path) == job


@pytest.mark.parametrize(
    ("code", "trust", "mode"), [({"a": ""}, "", 0o755), ({}, "", 0o777), ({"a": ""}, "1", 0o777)]
)
def test_only_folders_with_code_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: dict[str, str], trust: str, mode: int
) -> None:
    """A user who trusts all code keeps a folder that a group shares."""
    monkeypatch.setenv(TRUST, trust)
    tmp_path.chmod(0o777)
    close_folder(tmp_path, code)
    assert tmp_path.stat().st_mode & 0o777 == mode


def test_an_error_names_the_user_s_file_and_line(tmp_path: Path) -> None:
    """The error names the last line of the user's code in the traceback."""
    write(tmp_path, mynet="import parts\n\ndef build():\n    return parts.inner()\n")
    write(tmp_path, parts="def inner():\n    return int('x')\n")
    job = load(tmp_path)
    said = r"^here: parts\.py, line 2: ValueError: invalid literal"
    with pytest.raises(InputError, match=said), own_errors("here"):
        call(job)
    write(tmp_path, mynet="import sys\nsys.exit(3)\ndef build(): pass\n")
    with pytest.raises(InputError, match=r"mynet\.py, line 2: SystemExit: 3"):
        call(load(tmp_path))


def test_options_are_set_and_searched(tmp_path: Path) -> None:
    """`--set`, lists, ranges and conditions may name options."""
    write(tmp_path, mynet="def build(): return 1\n", other="def net(): return 2\n")
    job = load(tmp_path, "mynet.py:build", "model.options.width=3", "model.options.kind=a")
    assert job.model.options == {"width": 3, "kind": "a"}
    assert job.settings()["model.options.width"] == 3
    path = tmp_path / "search.toml"
    search_of = JOB.format("mynet.py:build") + "[search]\ntrials = 4\n[search.space]\n"
    path.write_text(
        f'{search_of}model.architecture = ["gru", "./other.py:net"]\n'
        'model.options.width = { values = [3, 5], when = { model.architecture = ["./other.py:net"] '
        "} }\n"
    )
    search = load_search(path)
    assert {"mynet.py", "other.py"} == search.job.code.keys()
    own = search.job_of({"model.architecture": "other.py:net", "model.options.width": 5})
    assert (own.model.options, call(own)) == ({"width": 5}, 2)
    path.write_text(search.to_toml())
    assert load_search(path).content == search.content
    path.write_text(path.read_text().replace("return 2", "return 3"))
    digests = "code.other.py was [0-9a-f]{8} and is [0-9a-f]{8}"
    (change,) = search.changes(load_search(path))
    assert re.fullmatch(digests, change)
    path.write_text(
        f"{search_of}model.options.rate = {{ min = 0, max = 0.5 }}\n"
        "model.options.width = { min = 1, max = 9 }\n"
    )
    assert [each.is_whole for each in load_search(path).space] == [False, True]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("model.options=3", "should be a table"),
        ("model.options.day=2020-01-01", "type date is not JSON"),
        ("model.options.rate=nan", "not JSON compliant"),
        ("model.options.path=/d/gr\udcfcn", "UTF-8 strings"),
        ("model.options.deep.er=1", "no key model.options.deep.er"),
        ("model.optons.width=1", "did you mean model.options?"),
        ("train.options.width=1", "no key train.options.width"),
        ("model.architecture=gru model.options.width=3", "{'width': 3}: gru takes no options"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, setting: str, says: str) -> None:
    """Values of options must be plain; the five networks take no options."""
    write(tmp_path, mynet="def build(): return 1\n")
    with pytest.raises(InputError, match=re.escape(says)):
        load(tmp_path, "mynet.py:build", *setting.split())
