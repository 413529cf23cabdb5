"""Runs that somebody else wrote: put back inside their folder or refused, and never trusted."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.data.dataset_folder import save_folder
from harness.data.sources import open_sample
from harness.errors import InputError, RunError
from harness.job.job_file import load_job
from harness.slurm.snapshot import take_snapshot
from harness.system.git import code_version
from harness.tracking.reproduce import Reproduced, _command, reproduce
from harness.tracking.run_dir import RunDirectory, stamped
from tests.conftest import JOBS, Harness, write_program
from tests.slurm.test_submit import edit, git
from tests.slurm.test_submit import project as project

NOBODY = 65534
NO_NAME = "/" + 300 * "x"  # a disk refuses it, as a folder in somebody's closed home
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's files")


class Strangers:
    """A run with a record that its owner made up, and a folder that it should not reach."""

    def __init__(self, folder: Path, project: Path) -> None:
        self.project = project
        self.victim = folder / "victim"
        self.victim.mkdir()
        self.run = folder / "runs/lstm/a"
        self.run.mkdir(parents=True)
        self.write(load_job(JOBS / "lstm.toml").to_toml())
        self.target = folder / "here/back"

    def write(self, job: str | bytes = b"", **record: object) -> None:
        if job:
            content = job.encode() if isinstance(job, str) else job
            (self.run / "job.toml").write_bytes(content)
        known = {"commit": git(self.project, "rev-parse", "HEAD").strip(), "uncommitted_diff": ""}
        data = {"is_sample": True, "checksum": "0"}
        whole = stamped({**known, "dataset": data}) | record
        (self.run / "provenance.json").write_text(json.dumps(whole))

    def reproduce(self, *, trust_code: bool = False) -> Reproduced:
        run = RunDirectory.open(self.run)
        return reproduce(run, self.project, self.target, trust_code=trust_code)

    def refused(self, match: str, error: type[Exception] = InputError) -> None:
        """It is refused, nothing reached the victim, and nothing is left."""
        with pytest.raises(error, match=match):
            self.reproduce()
        assert list(self.victim.iterdir()) == []
        assert not self.target.exists()
        assert not self.target.parent.exists() or list(self.target.parent.iterdir()) == []


@pytest.fixture
def stranger(tmp_path: Path, project: Path) -> Strangers:
    return Strangers(tmp_path, project)


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", ".git/hooks/x", "a/.GIT/x"])
def test_a_path_out_of_the_folder_is_refused(stranger: Strangers, path: str) -> None:
    """Absolute, dotted or git's own: by git itself."""
    diff = (
        f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
        "@@ -0,0 +1 @@\n+x\n"
    )
    stranger.write(uncommitted_diff=diff)
    stranger.refused("its code can't be put back: git apply: .*path", RunError)


def test_changes_of_ones_own_are_put_back_with_their_links(stranger: Strangers) -> None:
    """Links that stay inside the folder are code."""
    changed = stranger.project
    edit(changed)
    (changed / "jobs/inside.toml").symlink_to("lstm.toml")
    stranger.write(uncommitted_diff=code_version(changed)["uncommitted_diff"])
    restored = stranger.reproduce()
    assert (restored.folder / "jobs/inside.toml").readlink() == Path("lstm.toml")
    assert restored.warnings[-1:] == ["the run had another sample than this version of harness"]


def test_an_old_git_puts_changes_back(
    stranger: Strangers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 2.35, as on Ubuntu 22.04, it does not know `apply --allow-empty`."""
    edit(stranger.project)
    stranger.write(uncommitted_diff=code_version(stranger.project)["uncommitted_diff"])
    old = f'case " $* " in *" --allow-empty "*) exit 129;; esac; exec {shutil.which("git")} "$@"'
    path = write_program(tmp_path / "bin/git", old)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    assert stranger.reproduce().source.endswith(" and the uncommitted changes")


@pytest.mark.parametrize("job", [b"not toml [", b"\xff\xfe"])
def test_the_job_is_checked_first(stranger: Strangers, job: bytes) -> None:
    """A file that is no job is refused before anything is written."""
    stranger.write(job)
    stranger.refused("job.toml: is no job file")


def test_a_job_of_another_version_is_checked_by_its_own_code(stranger: Strangers) -> None:
    """It may have keys that this version does not know; TOML it is all the same."""
    text = load_job(JOBS / "lstm.toml").to_toml() + "\n[later]\nkey = 1\n"
    stranger.write(text, harness="9.9.9", format=9)
    assert (stranger.reproduce().folder / "reproduced.toml").read_text() == text


@pytest.mark.parametrize("record", [{"snapshot": 7}, {"left_out_files": 7}, {"commit": ["x"]},
                                    {"dataset": []}, {"packages": 1}])  # fmt: skip
def test_a_record_of_nonsense_is_one_line(stranger: Strangers, record: dict[str, object]) -> None:
    """Whatever a value is, it is no traceback."""
    stranger.write(b"", **record)
    try:
        stranger.reproduce()
    except (InputError, RunError) as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - either is right


def begun(**parent: str) -> dict[str, object]:
    """The record of a run that `--from` began."""
    return {"starts": [{"parent": parent}]}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({}, []),
        ({"devices_asked": "cpu:2"}, ["--devices", "cpu:2"]),
        (begun(run="/a", begins_with="weights"), ["--from", "/a"]),
        (begun(run="/b", begins_with="checkpoint"), []),
        (begun(run="/b", begins_with="checkpoint", weights_of="/a"), ["--from", "/a"]),
    ],
)
def test_the_command_has_the_devices_and_the_beginning_of_the_run(
    record: dict[str, object], words: list[str]
) -> None:
    """The job itself names neither, nor the data."""
    command = _command(record, Path("it's back"), ["--data", "x y"])
    assert shlex.split(command)[:3] == ["cd", "it's back", "&&"]
    words = ["-m", "harness", "train", "reproduced.toml", *words, "--data", "x y"]
    assert shlex.split(command)[4:] == words


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"is_sample": True, "folder": "/"}, ["--data", "imdb-sample"]),
        ({"folder": "HERE"}, ["--data", "HERE"]),
        ({"folder": "HERE", "checksum": "ab"}, []),
        ({"folder": "HERE", "is_own": True}, []),
        ({"folder": "/"}, []),
        ({"folder": None}, []),
        ({"folder": NO_NAME}, []),
    ],
)
def test_data_are_named_where_they_still_are(
    stranger: Strangers, data: dict[str, object], words: list[str]
) -> None:
    """Others under the same path are told of like none; the job itself names own texts."""
    here = stranger.victim / "data"
    save_folder(open_sample(), here)
    data = {"checksum": open_sample().checksum, **data}
    stranger.write(dataset=data | {"folder": str(here)} if data["folder"] == "HERE" else data)
    done = stranger.reproduce()
    assert shlex.split(done.command)[8:] == [str(here) if w == "HERE" else w for w in words]
    is_told = "which is not here or holds others" in str(done.warnings)
    assert is_told == (not words and "is_own" not in data)


def test_a_snapshot_is_taken_first(stranger: Strangers, tmp_path: Path) -> None:
    """It is whole, where the record may lack a file; without it the commit is put back."""
    snapshot = take_snapshot(stranger.project, tmp_path / "own")
    commit = f"commit {git(stranger.project, 'rev-parse', 'HEAD')[:12]}"
    left_out: dict[str, object] = {"left_out_files": ["a.bin"]}
    sources: list[tuple[dict[str, object], str]] = [
        ({"snapshot": str(snapshot), **left_out}, f"snapshot {snapshot}"),
        (left_out, commit),
    ]
    for number, (record, source) in enumerate(sources):
        stranger.write(b"", **record)
        stranger.target = tmp_path / f"here/{number}"
        assert stranger.reproduce().source == source


@as_root
def test_the_run_of_another_user_needs_trust_by_name(stranger: Strangers) -> None:
    """Its code would run as oneself: the owner is named, and --trust-code lets it through."""
    os.chown(stranger.run, NOBODY, -1)
    stranger.refused(r"belongs to nobody.*--trust-code")
    restored = stranger.reproduce(trust_code=True)
    assert any("belongs to nobody" in line for line in restored.warnings)


@pytest.mark.parametrize("name", ["", "provenance.json", "job.toml"])
def test_a_run_that_others_can_write_needs_trust(stranger: Strangers, name: str) -> None:
    """Then its record is not what its owner wrote."""
    path = stranger.run / name
    path.chmod(path.stat().st_mode | 0o002)
    stranger.refused(r"others can write to it.*--trust-code")


@as_root
def test_the_snapshot_of_another_user_needs_trust(stranger: Strangers, tmp_path: Path) -> None:
    """A record of one's own may name a folder that somebody else has put there since."""
    snapshot = take_snapshot(stranger.project, tmp_path / "theirs")
    os.chown(snapshot, NOBODY, -1)
    stranger.write(commit=None, snapshot=str(snapshot))
    stranger.refused(r"belongs to nobody.*--trust-code")


@as_root
@pytest.mark.parametrize("planted", ["slurm/common.sh", "typer.py", "slurm"])
def test_a_planted_snapshot_is_not_submitted(project: Path, tmp_path: Path, planted: str) -> None:
    """In a folder that others write to, the code of a job is one's own: made anew, not reused."""
    snapshot = take_snapshot(project, tmp_path / "runs")
    path = snapshot / planted
    if path.is_dir():
        path.chmod(0o777)
    else:
        path.write_text(path.read_text() if path.exists() else "evil")
        os.chown(path, NOBODY, -1)
    assert take_snapshot(project, tmp_path / "runs") == snapshot
    assert not (snapshot / "typer.py").exists()
    assert {each.stat().st_uid for each in snapshot.rglob("*")} == {0}
    assert all(
        each.lstat().st_mode & 0o022 == 0 for each in snapshot.rglob("*") if not each.is_symlink()
    )


def test_a_snapshot_can_be_written_by_its_owner_alone(project: Path, tmp_path: Path) -> None:
    """Whatever the umask and the modes in the checkout."""
    (project / "edited.txt").chmod(0o666)
    before = os.umask(0)
    try:
        snapshot = take_snapshot(project, tmp_path / "runs")
    finally:
        os.umask(before)
    paths = [snapshot, *snapshot.rglob("*")]
    assert all(path.lstat().st_mode & 0o022 == 0 for path in paths if not path.is_symlink())


@pytest.mark.full
def test_nothing_is_imported_from_the_folder_that_a_command_is_started_in(
    harness: Harness, finished: tuple[Harness, Path]
) -> None:
    """Neither a command nor the processes that it starts import what lies in a run's folder."""
    run = finished[1]
    mark = harness.folder / "was-run"
    code = f"open({str(mark)!r}, 'w').close()\n"
    planted = ["json", "typer", "numpy", "keras", "harness", "tensorboard", "sitecustomize"]
    files = [run / f"{name}.py" for name in planted]
    for file in files:
        file.write_text(code)
    try:
        program = "import sys; from harness.cli.main import main; sys.exit(main())"
        for words in (
            ["status", "--runs", "."],
            ["train", str(JOBS / "lstm.toml"), "--seeds", "1-2", "--set", "data.limit=100",
             "--set", "train.epochs=1", "--set", "model.units=4"],
        ):  # fmt: skip
            # As the installed `harness` starts, which does not put this folder on the path.
            done = subprocess.run(
                [harness.command()[0], "-P", "-c", program, *words], cwd=run,
                env=harness.environment, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert not mark.exists(), words
            assert done.returncode == 0, done.stderr
    finally:
        for file in files:
            file.unlink()


def test_a_git_that_can_not_tell_is_named(
    stranger: Strangers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit may well be there; a snapshot is put back without git."""
    snapshot = take_snapshot(stranger.project, stranger.run.parent.parent)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RunError, match="its code can't be put back: git can't be started"):
        stranger.reproduce()
    commit = json.loads((stranger.run / "provenance.json").read_text())["commit"]
    record = {"commit": commit, "uncommitted_diff": "", "snapshot": str(snapshot)}
    (stranger.run / "provenance.json").write_text(json.dumps(stamped(record)))
    assert stranger.reproduce().source == f"snapshot {snapshot}"
