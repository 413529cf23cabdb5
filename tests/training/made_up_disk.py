"""A simulated disk that several nodes share; replaced functions of `os` use it.

As on NFS, a node may see a folder as it was 30 s ago, without newer files. A file that a node opens
has its newest content. A power cut may lose data that a node wrote and did not sync. During every
operation time passes, and other processes may act.
"""

import contextlib
import errno
import io
import os
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

TOP = "/made-up"
CACHE_S = 30.0  # age of the oldest state that a node may see
FIRST_DESCRIPTOR = 10**6
WRITTEN_S = 30.0  # time until unsynced data are on the disk
LOST = 0.7  # share of unsynced names that a power cut loses


@dataclass(eq=False)
class File:
    """An inode: a file or a folder, without its name."""

    node: int
    made_s: float
    is_folder: bool = False
    content: bytes = b""
    is_synced: bool = False


class Writer(io.BytesIO):
    """A file that is being written; its bytes reach the disk when it is closed."""

    def __init__(self, disk: "Disk", path: str, number: int) -> None:
        super().__init__()
        self.disk, self.path, self.number = disk, path, number

    def fileno(self) -> int:
        return self.number

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            self.disk.fill(self.number, self.path, content)


class Reader(io.BytesIO):
    """A file that is being read."""

    number = 0

    def fileno(self) -> int:
        return self.number


class Disk:
    """The files, their unsynced changes, and the view of each node."""

    def __init__(
        self,
        num_nodes: int,
        chance: random.Random,
        act: Callable[[str, str, Callable[[], Any]], Any],
    ) -> None:
        """Make an empty disk.

        Args:
            num_nodes: number of nodes that share the disk.
            chance: the source of random numbers.
            act: is called for every operation, with its kind, its path and a function for its
                effect; lets time pass, then calls this function or raises an error.
        """
        self.chance, self.act = chance, act
        self.node, self.now_s = 0, 0.0  # `World` sets the acting node and the time
        self.files: dict[str, File] = {TOP: File(0, 0.0, is_folder=True)}
        # By path: the node that changed it, the time, and the file that a power cut restores.
        self.unsynced: dict[str, tuple[int, float, File | None]] = {}
        self.views: list[dict[str, tuple[float, Any]]] = [{} for _ in range(num_nodes)]
        self.opened: list[tuple[str, File]] = []

    # What the acting node sees

    def _seen(self, key: str, look: Callable[[], Any]) -> Any:
        view = self.views[self.node]
        until_s, found = view.get(key, (0.0, None))
        if until_s <= self.now_s:
            found = look()
            lasts_s = self.chance.choice((CACHE_S, self.chance.random() * CACHE_S))
            view[key] = self.now_s + lasts_s, found
        return found

    def _file(self, path: str) -> File:
        found: File | None = self._seen(path, lambda: self.files.get(path))
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return found

    def names(self, folder: str) -> list[str]:
        start = f"{folder}/"
        return sorted(
            path[len(start) :]
            for path in self.files
            if path.startswith(start) and "/" not in path[len(start) :]
        )

    # Changes

    def put(self, path: str, file: File | None) -> None:
        """Put a file at a path, or remove the file there; the acting node sees the change."""
        self.unsynced.setdefault(path, (self.node, self.now_s, self.files.get(path)))
        if file is None:
            del self.files[path]
        else:
            self.files[path] = file
        view, folder = self.views[self.node], path.rpartition("/")[0]
        # A node that changes a folder reads it again, and looks up its missing names again.
        for each in [each for each, (_, known) in view.items() if known is None]:
            if each.rpartition("/")[0] == folder:
                del view[each]
        view.pop(f"{folder}/", None)
        view[path] = self.now_s + self.chance.random() * CACHE_S, file

    def forget(self, *paths: str) -> None:
        """Make the acting node look up paths again, as after an error of the server."""
        for path in paths:
            self.views[self.node].pop(path, None)

    def _new(self, path: str, *, is_folder: bool = False) -> File:
        self._file(path.rpartition("/")[0])
        if path in self.files:
            self.forget(path)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        file = File(self.node, self.now_s, is_folder=is_folder)
        self.put(path, file)
        return file

    def fill(self, number: int, path: str, content: bytes) -> None:
        file = self.opened[number - FIRST_DESCRIPTOR][1]
        file.content = content[: len(content) // 2]  # what remains if the writer is killed
        self.act("write", path, lambda: setattr(file, "content", content))

    def cut_power(self, node: int) -> None:
        """Lose some of the unsynced changes that a node made in the last 30 s."""
        since_s = self.now_s - WRITTEN_S
        for path, (by, at_s, before) in [*self.unsynced.items()]:
            if by != node:
                continue
            del self.unsynced[path]
            if at_s > since_s and self.chance.random() < LOST:
                self.files.pop(path, None)
                self.files.update({path: before} if before else {})
        for path, file in [*self.files.items()]:
            is_lost = file.node == node and not file.is_synced and file.made_s > since_s
            if path.rpartition("/")[0] not in self.files and path != TOP:
                del self.files[path]  # the power cut lost its folder
            elif is_lost and not file.is_folder:
                file.content = file.content[: self.chance.randint(0, len(file.content))]
        self.views[node].clear()

    # Replacements of functions of `os`

    def open(self, path: str, flags: int, *_: Any, **__: Any) -> int:
        def find() -> File:
            if is_new:
                return self._new(path)
            self._file(path)  # fails if the node sees no file there yet
            self.forget(path)
            return self._file(path)

        is_new = bool(flags & os.O_CREAT)
        self.opened.append((path, self.act("create" if is_new else "open", path, find)))
        return FIRST_DESCRIPTOR + len(self.opened) - 1

    def fdopen(self, number: int, mode: str = "r", *_: Any, **__: Any) -> Any:
        path, file = self.opened[number - FIRST_DESCRIPTOR]
        if "w" in mode:
            return Writer(self, path, number)
        reader = Reader(file.content)
        reader.number = number
        return reader if "b" in mode else io.TextIOWrapper(reader, "utf-8")

    def open_file(self, path: str, mode: str = "r", *_: Any, **__: Any) -> Any:
        flags = os.O_CREAT if "w" in mode else os.O_RDONLY
        return self.fdopen(self.open(path, flags), mode)

    def close(self, number: int) -> None:
        pass

    def fstat(self, number: int) -> Any:
        return self._status(self.opened[number - FIRST_DESCRIPTOR][1])

    def fsync(self, number: int) -> None:
        path, file = self.opened[number - FIRST_DESCRIPTOR]

        def sync() -> None:
            file.is_synced = True
            if file.is_folder:
                for each in [each for each in self.unsynced if each.rpartition("/")[0] == path]:
                    del self.unsynced[each]

        self.act("fsync", path, sync)

    def stat(self, path: str, **_: Any) -> Any:
        return self._status(self.act("stat", path, lambda: self._file(path)))

    def _status(self, file: File) -> Any:
        mode = stat.S_IFDIR if file.is_folder else stat.S_IFREG
        size = len(file.content)
        return SimpleNamespace(st_mode=mode | 0o644, st_size=size, st_uid=os.getuid(), st_mtime=0)

    def rename(self, path: str, target: str) -> None:
        def move() -> None:
            file = self.files.get(path)
            if file is None:
                self.forget(path)
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            self.put(path, None)
            self.put(target, file)

        self.act("rename", os.fspath(target), move)

    def unlink(self, path: str) -> None:
        def remove() -> None:
            if path not in self.files:
                self.forget(path)
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            self.put(path, None)

        self.act("unlink", path, remove)

    def mkdir(self, path: str, *_: Any, **__: Any) -> None:
        self.act("mkdir", path, lambda: self._new(path, is_folder=True))

    def listdir(self, path: str) -> Any:
        def look() -> Any:
            self._file(path)
            return self._seen(f"{path}/", lambda: self.names(path))

        return self.act("list", path, look)

    @contextlib.contextmanager
    def scandir(self, path: str) -> Iterator[Iterator[Any]]:
        def entry(name: str) -> Any:
            file = self.files.get(f"{path}/{name}")
            is_folder = file is not None and file.is_folder
            found = SimpleNamespace(name=name, path=f"{path}/{name}")
            found.is_dir, found.is_symlink = (lambda **_: is_folder), (lambda: False)
            return found

        yield iter([entry(name) for name in self.listdir(path)])

    def utime(self, path: str, *_: Any, **__: Any) -> None:
        pass


MOUNT: Any = SimpleNamespace(disk=None, world=None)  # the disk at `TOP`, and its world


@contextlib.contextmanager
def mounted() -> Iterator[None]:
    """Redirect `os` and `open` to the disk of `MOUNT` for paths and descriptors of this disk."""
    names = {
        **{name: name for name in ("open", "fdopen", "close", "fstat", "fsync", "stat", "unlink")},
        **{name: name for name in ("mkdir", "listdir", "scandir", "utime", "rename")},
        "replace": "rename",
        "lstat": "stat",
    }
    with contextlib.ExitStack() as stack:
        for name, method in names.items():
            stack.enter_context(patch.object(os, name, _either(getattr(os, name), method)))
        stack.enter_context(patch.object(io, "open", _either(io.open, "open_file")))
        yield


def _either(real: Callable[..., Any], method: str) -> Callable[..., Any]:
    def call(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
        is_path = isinstance(path, str | PurePath)
        at = str(path) if is_path else path
        is_ours = at.startswith(TOP) if is_path else isinstance(at, int) and at >= FIRST_DESCRIPTOR
        if not is_ours:
            return real(path, *args, **kwargs)
        args = tuple(str(each) if isinstance(each, PurePath) else each for each in args)
        return getattr(MOUNT.disk, method)(at, *args, **kwargs)

    return call
