"""`reproduce` of runs that another user wrote: restored inside the new folder, or refused."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from harness.data.sources import open_dataset, open_sample
from harness.errors import InputError
from harness.job.job_file import load_job
from harness.job.own_code import check_trusted
from harness.slurm.snapshot import take_snapshot
from harness.system.git import code_version
from harness.tracking.provenance import Reproduced, _command, _put_data, reproduce
from harness.tracking.run_dir import RunDirectory, stamped
from tests.conftest import JOBS, SHRUNK, Harness
from tests.slurm.test_submit import edit, git, git_init
from tests.slurm.test_submit import project as project
from tests.tracking.site import NOBODY, as_root


class Strangers:
    """A run whose owner forged its record, and a victim's folder that must not change."""

    def __init__(self, folder: Path, project: Path) -> None:
        self.project = project
        self.commit = git(project, "rev-parse", "HEAD").strip()
        self.victim = folder / "victim"
        self.victim.mkdir()
        self.run = folder / "runs/lstm/a"
        self.run.mkdir(parents=True)
        (self.run / "job.toml").write_text(load_job(JOBS / "lstm.toml").to_toml())
        self.write()
        self.target = folder / "here/back"

    def write(self, **record: object) -> None:
        known = {"commit": self.commit, "uncommitted_diff": ""}
        data = {"is_sample": True, "checksum": "0"}
        whole = stamped({**known, "dataset": data}) | record
        (self.run / "provenance.json").write_text(json.dumps(whole))

    def reproduce(self, *, trust_code: bool = False) -> Reproduced:
        run = RunDirectory.open(self.run)
        return reproduce(run, self.project, self.target, trust_code=trust_code)

    def refused(self, match: str) -> None:
        """Assert that the run is refused, and that no file is written."""
        with pytest.raises(InputError, match=match):
            self.reproduce()
        assert list(self.victim.iterdir()) == []
        assert not self.target.exists()
        assert not self.target.parent.exists() or list(self.target.parent.iterdir()) == []


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git checkout that no test changes."""
    checkout = tmp_path_factory.mktemp("checkout")
    (checkout / "harness").mkdir()
    (checkout / "harness/a.py").touch()
    git_init(checkout)
    return checkout


@pytest.fixture
def stranger(tmp_path: Path, checkout: Path) -> Strangers:
    return Strangers(tmp_path, checkout)


def adding(path: str) -> dict[str, object]:
    """Return the record of a run whose uncommitted changes add a file."""
    diff = f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
    return {"uncommitted_diff": f"{diff}@@ -0,0 +1 @@\n+x\n"}


def test_a_snapshot_is_named_where_the_record_is_incomplete(stranger: Strangers) -> None:
    """The snapshot of a submitted run contains large files, and stays if the commit is gone."""
    kept = take_snapshot(stranger.project, stranger.run.parents[1])
    stranger.write(snapshot=str(kept), commit="0" * 40)
    stranger.refused(f"in the checkout where the run started; all the code is in {kept}")
    stranger.write(snapshot=str(kept), left_out_files=["words.txt"])
    assert stranger.reproduce().warnings[-1].endswith(f"'words.txt'; all the code is in {kept}")


@pytest.mark.parametrize(
    ("record", "match"),
    [
        (adding("../x"), "its code can't be restored: git apply: .*path"),
        (adding("a/.GIT/x"), "its code can't be restored: git apply: .*path"),
        ({"commit": "0" * 40}, "fetch commit 000000000000 into"),
        ({"commit": "--help"}, "its record has no commit"),
    ],
)
def test_code_that_is_missing_or_outside_is_refused(
    stranger: Strangers, record: dict[str, object], match: str
) -> None:
    """The line says why, and no folder is left."""
    stranger.write(**record)
    stranger.refused(match)


def test_recorded_changes_are_restored(project: Path, tmp_path: Path) -> None:
    """The changes may contain links."""
    stranger = Strangers(tmp_path, project)
    edit(project)
    (project / "jobs/inside.toml").symlink_to("lstm.toml")
    stranger.write(uncommitted_diff=code_version(project)["uncommitted_diff"])
    restored = stranger.reproduce()
    assert restored.source.endswith(" and the uncommitted changes")
    assert (stranger.target / "jobs/inside.toml").readlink() == Path("lstm.toml")
    assert stranger.target.stat().st_mode & 0o077 == 0  # as private as the record


def test_nothing_is_written_through_a_link(stranger: Strangers) -> None:
    """The changes of a record may replace the sample's folder by a link."""
    link = "diff --git a/imdb-sample b/imdb-sample\nnew file mode 120000\n--- /dev/null\n"
    link += f"+++ b/imdb-sample\n@@ -0,0 +1 @@\n+{stranger.victim}\n\\ No newline at end of file\n"
    stranger.write(uncommitted_diff=link)
    stranger.refused("contains a link, imdb-sample")


def test_an_existing_folder_is_refused(stranger: Strangers) -> None:
    """An empty folder is refused too, and so is a run without a record."""
    stranger.target.mkdir(parents=True)
    with pytest.raises(InputError, match="exists already"):
        stranger.reproduce()
    stranger.target.rmdir()
    (stranger.run / "provenance.json").unlink()
    stranger.refused("which records the code, is missing or broken")


def test_a_job_of_another_version_is_restored_unchecked(stranger: Strangers) -> None:
    """The restored code knows all keys of the job; this version may not."""
    with (stranger.run / "job.toml").open("a") as job:
        job.write("\n[later]\nkey = 1\n")
    stranger.write(harness="9.9.9", format=9)
    restored = stranger.reproduce()
    assert "[later]" in (stranger.target / "reproduced.toml").read_text()
    assert any(line.startswith("numpy was None and is now ") for line in restored.warnings)


def begun(**parent: str) -> dict[str, object]:
    """Return the record of a run that began with `--from`."""
    return {"starts": [{"parent": parent}]}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            {"devices_asked": "cpu:2", **begun(run="/a", begins_with="weights")},
            ["--devices", "cpu:2", "--from", "/a"],
        ),
        (begun(run="/b", begins_with="checkpoint"), []),
        (
            {"starts": [{"devices": [{"device": f"gpu:{n}"} for n in (0, 1)]}]},
            ["--devices", "gpu:2"],
        ),
        ({"starts": [{"devices": [{"device": "n1/gpu:0"}]}]}, []),
        ({"starts": [{"devices": 7}]}, []),
        (begun(run="/b", begins_with="checkpoint", weights_of="/a"), ["--from", "/a"]),
    ],
)
def test_the_command_names_devices_parent_and_data(
    record: dict[str, object], words: list[str]
) -> None:
    """The job file does not contain these arguments."""
    command = _command(record, Path("it's back"), ["--data", "x y"])
    assert shlex.split(command)[:3] == ["cd", "it's back", "&&"]
    words = ["-m", "harness", "train", "reproduced.toml", *words, "--data", "x y"]
    assert shlex.split(command)[4:] == words
    command = _command({**record, "plan": {"threads": 3}}, Path("back"), [])
    assert shlex.split(command)[3:5] == ["env", "HARNESS_CPUS=3"]


def test_the_command_names_the_data(tmp_path: Path) -> None:
    """The sample is copied into the folder. The job file itself names a user's texts."""
    for data, words in (
        ({"is_sample": True, "folder": "/"}, ["--data", "imdb-sample"]),
        ({"folder": "/data"}, ["--data", "/data"]),
        ({"folder": "/data", "is_own": True}, []),
        ({"folder": None}, []),
    ):
        assert _put_data({"dataset": data}, tmp_path) == words, data
    assert open_dataset(tmp_path / "imdb-sample").checksum == open_sample().checksum


def test_restored_code_is_trusted_under_any_umask(stranger: Strangers) -> None:
    """`harness train` refuses a job with code that other users can write."""
    (stranger.run / "job.toml").write_text((JOBS / "own/conv_gru.toml").read_text())
    before = os.umask(0)
    try:
        stranger.reproduce()
    finally:
        os.umask(before)
    check_trusted(stranger.target / "reproduced.toml")


def test_code_that_others_can_change_needs_trust(stranger: Strangers) -> None:
    """The code would run as this user. The error says why; --trust-code permits the code."""
    for path in (stranger.run, *stranger.run.iterdir()):
        before = path.stat().st_mode
        path.chmod(before | 0o002)
        stranger.refused(rf"{path}: others can write to it.*--trust-code")
        path.chmod(before)
    stranger.run.chmod(0o777)
    restored = stranger.reproduce(trust_code=True)
    assert any("others can write to it" in line for line in restored.warnings)


@as_root
@pytest.mark.parametrize("planted", ["slurm/common.sh", "typer.py", "slurm"])
def test_a_planted_snapshot_is_not_submitted(project: Path, tmp_path: Path, planted: str) -> None:
    """A new snapshot, which only the user can open, replaces one that others could change."""
    (project / "edited.txt").chmod(0o666)
    snapshot = take_snapshot(project, tmp_path / "runs")
    snapshot.chmod(0o777)
    path = snapshot / planted
    if path.is_dir():
        path.chmod(0o777)
    else:
        path.write_text(path.read_text() if path.exists() else "evil")
        os.chown(path, NOBODY, -1)
    assert take_snapshot(project, tmp_path / "runs") == snapshot
    assert not (snapshot / "typer.py").exists()
    assert {each.stat().st_uid for each in snapshot.rglob("*")} == {0}
    assert snapshot.stat().st_mode & 0o777 == 0o700


@pytest.mark.full
def test_nothing_is_imported_from_the_current_folder(harness: Harness) -> None:
    """Neither `train` nor its child processes import Python files from this folder."""
    mark = harness.folder / "was-run"
    for name in ("json", "typer", "numpy", "keras", "harness", "tensorboard", "sitecustomize"):
        (harness.folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    program = "import sys; from harness.cli.main import main; sys.exit(main())"
    words = ["train", str(JOBS / "lstm.toml"), "--seeds", "1", *SHRUNK, "--set", "train.epochs=1"]
    # With -P, as with the installed `harness`, this folder is not on sys.path.
    done = subprocess.run(
        [harness.command()[0], "-P", "-c", program, *words], cwd=harness.folder,
        env=harness.environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert not mark.exists()
    assert done.returncode == 0, done.stderr


def test_a_git_that_fails_is_named(stranger: Strangers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line does not say that the commit is missing, because it may exist."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="its code can't be restored: git can't be started"):
        stranger.reproduce()
