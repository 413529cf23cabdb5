"""The record of a run's starts, and the changes since the first start."""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InputError
from harness.system.console import Console
from harness.system.git import code_version
from harness.tracking import provenance
from harness.tracking.provenance import changes_since_first_start
from harness.tracking.run_dir import RECORD, RunDirectory
from harness.training.launch import warn_of_changes
from tests.tracking.site import NOBODY, as_root

CPUS = [{"device": "cpu:0"}, {"device": "cpu:1"}]
CODE = {"commit": "a" * 40, "uncommitted_diff": "one\udcff", "sources_sha256": "c" * 64}
PACKAGES = {"tensorflow": "2.21.0"}
EDITED = "the code's uncommitted changes differ from the record"


def started(**changes: object) -> dict[str, Any]:
    """Return the record of a first start with these changes."""
    return {"starts": [{"devices": CPUS, "packages": PACKAGES, **changes}]}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run that began with the code of this process."""
    monkeypatch.setattr(provenance, "code_of", lambda run: CODE)
    monkeypatch.setattr(provenance, "installed_packages", lambda: PACKAGES)
    monkeypatch.setattr(provenance, "processor", lambda: "AMD EPYC")
    begun: dict[str, Any] = {**CODE, **started()}
    (tmp_path / RECORD).write_text(json.dumps(begun))
    return RunDirectory(tmp_path)


def test_an_unchanged_start_has_no_changes(run: RunDirectory) -> None:
    """Names of nodes and devices may change. A new run has no record to compare with."""
    assert changes_since_first_start(run, CPUS) == []
    others = [{"device": f"n2/cpu:{i}"} for i in range(2)]
    assert changes_since_first_start(run, others) == []
    run.path(RECORD).unlink()
    assert changes_since_first_start(run, CPUS) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"commit": "b" * 40}, f"the code's commit was {'b' * 12} and is now {'a' * 12}"),
        ({"uncommitted_diff": "dropout halved"}, EDITED),
        ({"sources_sha256": "d" * 64}, EDITED),
        (started(packages={"tensorflow": "2.20.0"}), "tensorflow was 2.20.0 and is now 2.21.0"),
        (started(packages=[]), "tensorflow was None and is now 2.21.0"),
        (started(devices=CPUS[:1]), "the devices were 1 × CPU and are now 2 × CPU"),
        (
            started(devices=[{"device": "gpu:0", "name": "NVIDIA A100"}]),
            "the devices were 1 × NVIDIA A100 and are now 2 × CPU",
        ),
        (started(variables={"XLA_FLAGS": "-a"}), "XLA_FLAGS was -a and is now None"),
        (started(processor="Intel Xeon"), "the processor was Intel Xeon and is now AMD EPYC"),
    ],
)
def test_a_change_since_the_first_start_is_a_warning_or_refused_by_strict(
    run: RunDirectory, changed: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each change is one sentence; without `--strict` the run continues."""
    record = json.loads(run.path(RECORD).read_text())
    run.path(RECORD).write_text(json.dumps({**record, **changed}))
    assert changes_since_first_start(run, CPUS) == [said]
    warn_of_changes(run, CPUS, Console(), strict=False)
    assert f"warning: changed since the run began: {said}" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"^--strict: run .* leave --strict out$"):
        warn_of_changes(run, CPUS, Console(), strict=True)


def test_gpu_libraries_are_compared(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another driver may compile other kernels, and the processor still computes the metrics."""
    now = {"cudnn": "9.5", "nccl": "2.3"}
    monkeypatch.setattr(provenance, "library_versions", lambda: now)
    monkeypatch.setattr(provenance, "nvidia_driver", lambda: "570.1")
    devices = [{"device": "gpu:0", "name": "NVIDIA A100"}]
    libraries = {**now, "driver": "535.5"}
    before = started(devices=devices, libraries=libraries, processor="Intel Xeon")
    run.path(RECORD).write_text(json.dumps({**CODE, **before}))
    assert changes_since_first_start(run, devices) == [
        "driver was 535.5 and is now 570.1",
        "the processor was Intel Xeon and is now AMD EPYC",
    ]


def test_a_checksum_shows_changes_without_git(tmp_path: Path) -> None:
    """The checksum covers contents and names of all Python files."""
    (tmp_path / "compute").mkdir()
    (tmp_path / "compute/loss.py").write_text("one = 1\n")
    before = provenance.sources_checksum(tmp_path)
    assert provenance.sources_checksum(tmp_path) == before
    (tmp_path / "compute/loss.py").write_text("one = 2\n")
    changed = provenance.sources_checksum(tmp_path)
    (tmp_path / "compute/loss.py").rename(tmp_path / "compute/cost.py")
    assert len({before, changed, provenance.sources_checksum(tmp_path)}) == 3


def test_each_start_records_code_and_packages(finished: tuple[object, Path]) -> None:
    """Each start records commit, checksum of uncommitted changes, versions, and processor."""
    record = json.loads((finished[1] / RECORD).read_text())
    (start,) = record["starts"]
    diff = record["uncommitted_diff"]
    content = None if diff is None else diff.encode(errors="surrogateescape")
    assert start["sources_sha256"] == provenance.sources_checksum()
    expected = None if content is None else hashlib.sha256(content).hexdigest()
    assert start["diff_sha256"] == expected
    for key in ("commit", "packages", "processor"):
        assert start[key] == record[key] != ""


def test_a_broken_record_is_refused(run: RunDirectory) -> None:
    """The broken file is not replaced."""
    run.path("job.toml").write_text("")
    for content in ("", "{", "[1]", '{"format": 6, "plan": "x"}', '{"format": 6, "starts": {}}'):
        run.path(RECORD).write_text(content)
        with pytest.raises(InputError, match=r"provenance\.json is broken"):
            run.job()
        assert run.path(RECORD).read_text() == content


@as_root
def test_the_reason_of_git_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git refuses a checkout of another user; the record contains the reason and the remedy."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SUDO_UID", raising=False)
    project = tmp_path / "project"
    subprocess.run(["git", "init", "-q", project], check=True)
    for path in (project, project / ".git"):
        os.chown(path, NOBODY, NOBODY)
    version = code_version(project)
    assert version["commit"] is None
    assert "dubious ownership" in version["git_problem"]
    assert "git config --global --add safe.directory" in version["git_problem"]
