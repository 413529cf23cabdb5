"""What strangers plant among the runs that TensorBoard shows."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.board.tensorboard_process import Board, make_run
from tests.conftest import Harness

pytestmark = pytest.mark.full

# Root without the right to read everything, so that what another user closed is closed to it too.
AS_USER = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
AS_USER += ["--inh-caps=-dac_override,-dac_read_search"]
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
PLANTED = """
set -eu
umask 022
mkdir lstm lstm/inside
for name in open closed half file; do cp -r "$1" lstm/$name; done
mkfifo lstm/open/tensorboard/events.out.tfevents.9.pipe
ln -s "$2/tensorboard/train" lstm/open/tensorboard/theirs
chmod 700 lstm/closed lstm/half/tensorboard/train
mv lstm/file/tensorboard/train/* lstm/file/tensorboard/train/tfevents.1
chmod 600 lstm/file/tensorboard/train/tfevents.1
echo >lstm/inside/job.toml
ln -s "$2/tensorboard" lstm/inside/tensorboard
ln -s "$2" lstm/link
"""
LEFT_OUT = {
    "lstm/closed can't be read: Permission denied",
    "lstm/file/tensorboard/train/tfevents.1 is no file that can be read",
    "lstm/half/tensorboard/train can't be read: Permission denied",
    "lstm/inside/tensorboard is a link of nobody",
    "lstm/link is a link of nobody",
    "lstm/open/tensorboard/events.out.tfevents.9.pipe is no file that can be read",
    "lstm/open/tensorboard/theirs is a link of nobody",
}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as a second user")
def test_what_a_neighbour_closed_or_linked_is_left_out_and_told() -> None:
    """By path and reason, whenever it happens; all other runs are shown, none behind the links."""
    with tempfile.TemporaryDirectory(prefix="board-") as name:
        Path(name).chmod(0o755)
        harness, shared = Harness(Path(name, "h")), Path(name, "shared")
        mine, elsewhere = (make_run(Path(name, "h", folder)) for folder in ("mine", "elsewhere"))
        shared.mkdir()
        shared.chmod(0o1777)

        def plant(script: str) -> None:
            command = [*AS_NOBODY, "sh", "-c", script, "sh", str(mine), str(elsewhere)]
            subprocess.run(command, cwd=shared, check=True, timeout=60)

        plant(PLANTED)
        board = Board(harness, shared, prefix=AS_USER).wait()
        board.wait_for_runs("lstm/open/train", "lstm/half")
        plant("chmod 700 lstm/open/tensorboard; cp -r $1 lstm/later")
        board.wait_for_runs("lstm/later/train")
        assert not [run for run in board.json("runs") if "theirs" in run or "link" in run]
        code, out, err = board.end()
    assert code == 0
    assert "Traceback" not in err
    told = {
        part.removeprefix("not shown: ").removeprefix(f"{shared}/")
        for line in out.splitlines()
        if line.startswith("not shown: ")
        for part in line.split("; ")
    }
    assert told >= {*LEFT_OUT, "lstm/open/tensorboard can't be read: Permission denied"}
