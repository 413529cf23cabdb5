"""An attacker, the second user of a node: `python -m tests.second_user SITE` as root.

SITE is a JSON file with paths, ports and process ids that any user of the node can list. The
program becomes the user nobody, attacks, and prints a JSON object: the number of attempts for each
target, and the successful attempts.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NOBODY = 65534
IDLE = 300  # connections without a request

Tries = Iterator[tuple[str, bool]]  # each attempt, and whether it succeeded


def succeeds(act: Callable[..., object], *args: object) -> bool:
    """Whether a call raises no OSError."""
    try:
        act(*args)
    except OSError:
        return False
    return True


def read(path: Path) -> object:
    """Read the names in a folder, or the beginning of a file."""
    return list(path.iterdir()) if path.is_dir() else path.open("rb").read(100)


def tries_at_files(site: dict[str, Any]) -> Tries:
    """Try to read private files, and to add, change and remove files of the owner."""
    for path in map(Path, site["private"]):
        yield f"read {path}", succeeds(read, path)
        yield f"enter {path}", succeeds(os.chdir, path)
    for top in map(Path, (*site["private"], *site["owned"])):
        found = [top]
        with contextlib.suppress(OSError):
            found += [path for path in top.rglob("*") if not path.is_symlink()]
        for path in found:
            yield f"add to {path}", succeeds((path / "planted.py").write_text, "x")
            yield f"link in {path}", succeeds((path / "link").symlink_to, "/etc")
            yield f"append to {path}", succeeds(path.open, "ab")
            yield f"remove {path}", succeeds(path.unlink)
            yield f"rename {path}", succeeds(path.rename, path.with_name("gone"))
            yield f"chmod {path}", succeeds(path.chmod, 0o777)


def tries_at_processes(site: dict[str, Any]) -> Tries:
    """Try to read the environment and memory of the owner's processes, and to kill them."""
    for process in site["processes"]:
        for name in ("environ", "mem", "maps", "fd", "cwd", "root"):
            path = Path(f"/proc/{process}/{name}")
            yield f"read {path}", succeeds(read, path)
        line = Path(f"/proc/{process}/cmdline").read_bytes().decode()
        yield f"a secret in the command line of {process}", any(s in line for s in site["secrets"])
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1):
            yield f"kill {process}", succeeds(os.kill, process, number)


def hold_open(site: dict[str, Any]) -> list[socket.socket]:
    """Open idle connections to TensorBoard, which must still serve the owner."""
    held = []
    for _ in range(IDLE):
        held.append(socket.create_connection(("127.0.0.1", site["board_port"]), timeout=30))
    for connection in held[::10]:
        with contextlib.suppress(OSError):
            connection.sendall(b"G")  # an incomplete request
    return held


TARGETS = {"files": tries_at_files, "processes": tries_at_processes}


def main() -> None:
    """Attack, print the result, and keep connections open until standard input ends."""
    site = json.loads(Path(sys.argv[1]).read_text())
    import encodings.idna  # noqa: F401 - the user nobody may be unable to read its folder

    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.umask(0o022)
    result: dict[str, Any] = {"tries": {}, "through": []}
    for target, tries in TARGETS.items():
        done = list(tries(site))
        result["tries"][target] = len(done)
        result["through"] += [f"{target}: {attempt}" for attempt, through in done if through]
    held = hold_open(site)
    print(json.dumps(result), flush=True)  # noqa: T201 - the answer
    sys.stdin.read()
    for connection in held:
        connection.close()


if __name__ == "__main__":
    main()
