"""A second user of the node attacks while the owner's processes run, without success."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness.data.dataset_folder import save_folder
from harness.data.sources import open_sample
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.nodes import WorkerGroup
from harness.slurm.snapshot import take_snapshot
from tests.board.tensorboard_process import Board, make_run
from tests.conftest import PROJECT, Harness, calm_run
from tests.slurm.test_nodes import variables
from tests.slurm.test_submit import git_init

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can act as a second user"),
]


class Owner:
    """The victim: a user with a run, code, data, TensorBoard, and a job that starts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.harness = harness = Harness(folder)
        self.run = calm_run(harness, "lstm")
        self.meeting = harness.runs / "lstm/.workers-7-0-0"
        monkeypatch.setenv("XDG_CACHE_HOME", harness.environment["XDG_CACHE_HOME"])
        record = json.loads((self.run / "provenance.json").read_text())
        (self.run / "provenance.json").write_text(json.dumps({**record, "uncommitted_diff": "x"}))
        make_run(harness.runs / "lstm/shown")
        self.data = folder / "data"
        save_folder(open_sample(), self.data)
        harness.environment["HARNESS_DATA"] = str(self.data)
        self.snapshot = self._snapshot(folder / "project")
        self.board = Board(harness).wait()

    def _snapshot(self, project: Path) -> Path:
        (project / "slurm").mkdir(parents=True)
        (project / "slurm/common.sh").write_text("true\n")
        git_init(project)
        (project / "new.py").write_text("new\n")
        return take_snapshot(project, self.harness.runs)

    def site(self) -> dict[str, Any]:
        """Return the facts that the attacker gets, and the secrets that it looks for."""
        cache = Path(self.harness.environment["XDG_CACHE_HOME"]) / "harness"
        return {
            "private": [
                *map(str, (cache / "tensorboard", self.board.connection, self.board.temporary)),
                *map(str, (self.meeting, self.snapshot / "snapshot.json")),
            ],
            "owned": [str(self.run), str(self.snapshot), str(self.data)],
            "processes": [self.board.process.pid],
            "secrets": [self.board.secret],
            "board_port": int(self.board.target.rpartition(":")[2]),
        }


@pytest.fixture
def owner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Owner]:
    with tempfile.TemporaryDirectory(prefix="own-") as name:
        Path(name).chmod(0o755)
        folder = Path(name, "h")  # the cache is a folder beside this one
        folder.mkdir()
        owner = Owner(folder, monkeypatch)
        yield owner
        owner.board.end()


def join(rank: int, parent: Path) -> WorkerGroup:
    allocation = SlurmEnvironment.from_environment(variables(rank))
    assert allocation
    return WorkerGroup.join(allocation, parent, "the same", join_s=40)


def test_a_second_user_can_read_and_change_nothing(
    owner: Owner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No attempt succeeds, and TensorBoard serves the owner in the meantime."""
    file = tmp_path / "site.json"
    file.write_text(json.dumps(owner.site()))
    with ThreadPoolExecutor(2) as pool:
        chief = pool.submit(join, 0, owner.meeting.parent)
        with subprocess.Popen(
            [sys.executable, "-m", "tests.second_user", str(file)],
            cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as stranger:  # fmt: skip
            assert stranger.stdout
            assert stranger.stdin
            found = json.loads(stranger.stdout.readline())
            # The attacker's idle connections are open now.
            assert owner.board.ask(f"/{owner.board.secret}/data/runs")[0] == 200
            worker = pool.submit(join, 1, owner.meeting.parent)
            assert chief.result().addresses == worker.result().addresses
            stranger.stdin.close()
            assert stranger.wait(timeout=30) == 0
    tries, through = found["tries"], found["through"]
    with capsys.disabled():
        counts = f"{sum(tries.values())} attempts {tries}, successful: {len(through)}"
        sys.stdout.write(f"\nsecond user: {counts}\n")
    assert through == []
    assert min(tries.values()) >= 8
    assert tries["files"] > 200
