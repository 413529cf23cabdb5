"""TensorBoard's server, which serves only requests whose path begins with a secret."""

import contextlib
import hmac
import io
import os
import socket
import sys
import types
import warnings
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from harness.system.console import echo
from harness.system.files import foreign_link

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

MAX_NEWCOMERS = 256  # largest number of open connections that have not sent the secret
RELOAD_S = 5.0  # seconds between two searches for new points
# To save memory, TensorBoard drops random points of a curve that has too many. If only one run is
# shown, a curve keeps up to 50,000 points. If fifty or more runs are shown, a curve keeps up to
# 1,000 points, which is TensorBoard's default.
POINTS_PER_CHART = 50_000
POINTS_PER_CURVE = 1_000


class Handler(WSGIRequestHandler):
    """Serves one connection."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds without data before the connection is closed and its thread ends

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        """Log nothing: requests contain the secret, and other users may read the log."""


class Server(ThreadedWSGIServer):
    """Serves TensorBoard on a listening socket; answers only requests that contain the secret."""

    def __init__(
        self,
        app: "WSGIApplication",
        listener: socket.socket,
        secret: str,
        used: Callable[[], object],
    ) -> None:
        host = listener.getsockname()[0]
        super().__init__(host, 0, self.answer, Handler, fd=listener.fileno())
        listener.close()  # the server has a copy of the socket
        self._board, self._secret, self._used = app, secret, used
        # The newest connections that have not sent the secret, the oldest first. The server closes
        # older ones, so other users can't block the server with idle connections.
        # The browser of the server's user sends the secret within milliseconds, long before its
        # connection could become the oldest.
        self._newcomers: dict[socket.socket, None] = {}

    def answer(self, environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        """Answer a request; a request without the secret gets a 404 that reveals nothing."""
        first = "/".join(str(environ.get("PATH_INFO", "")).split("/", 2)[:2])
        # The duration of `==` would reveal how much of a guessed secret is correct.
        prefix = f"/{self._secret}".encode()
        if not hmac.compare_digest(first.encode("utf-8", "surrogateescape"), prefix):
            body = b"Not found\n"
            start("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "10")])
            return [body]
        self._newcomers.pop(environ["werkzeug.socket"], None)
        self._used()

        def start_private(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            # A link from the page to another site must not reveal the secret.
            return start(status, [*headers, ("Referrer-Policy", "no-referrer")], *error)

        return self._board(environ, start_private)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Accept every connection; `answer` later checks the secret in each request."""
        del client_address
        # Other threads remove connections; each operation on the dictionary is atomic.
        self._newcomers[request] = None
        newcomers = list(self._newcomers)
        if len(newcomers) > MAX_NEWCOMERS:
            self._newcomers.pop(newcomers[0], None)
            with contextlib.suppress(OSError):
                newcomers[0].shutdown(socket.SHUT_RDWR)  # wakes the thread that reads the socket
        return True

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        """Print a message of TensorBoard, with the secret replaced."""
        text = str(message % args if args else message)
        echo(text.replace(self._secret, "<secret>"), err=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the error of a connection that a browser has closed."""

    def get_url(self) -> str:
        """Return an empty address; TensorBoard requires this method."""
        return ""


def start_tensorboard(
    folder: Path,
    num_runs: int,
    listener: socket.socket,
    *,
    secret: str,
    used: Callable[[], object],
    refused: dict[str, str],
) -> None:
    """Serve the event files below a folder, in a thread of this process.

    Args:
        folder: the folder that TensorBoard searches every RELOAD_S seconds for new runs and points.
        num_runs: the number of runs; with more runs, fewer points per curve are kept.
        listener: the socket that accepts the connections.
        secret: the first part of the path of every request.
        used: the function to call, without arguments, after a request that contains the secret.
        refused: each path that can't be shown, with the reason; TensorBoard's threads add items.
    """
    # If the module `notf` exists, TensorBoard reads files without TensorFlow. TensorFlow would take
    # 600 MB and some seconds. `notf` must exist before TensorBoard is imported.
    sys.modules["tensorboard.compat.notf"] = types.ModuleType("tensorboard.compat.notf")
    from tensorboard import default, program
    from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
    from tensorboard.compat.tensorflow_stub.io import gfile

    # TensorBoard's own CRC-32C is plain Python, and would take half of the loading time.
    pywrap_tensorflow.crc32c = google_crc32c.value
    gfile.listdir = partial(list_folder, refused=refused)
    board = program.TensorBoard(
        plugins=default.get_plugins(),
        assets_zip_provider=_live_assets,
        server_class=lambda app, flags: Server(app, listener, secret, used),
    )
    board.configure(
        logdir=str(folder),
        path_prefix=f"/{secret}",
        # TensorBoard's fast loader is off, because the loader is a separate server that does not
        # check the secret.
        load_fast="false",
        reload_interval=RELOAD_S,
        samples_per_plugin={"scalars": max(POINTS_PER_CURVE, POINTS_PER_CHART // max(1, num_runs))},
        window_title="harness",
    )
    # `board.main()` would write the secret path into a file in /tmp that everyone can read.
    board.launch()


def list_folder(folder: str, refused: dict[str, str]) -> list[str]:
    """List a folder for TensorBoard, without the entries that TensorBoard must not open.

    TensorBoard's own search for event files would end at an unreadable folder, wait for ever at a
    pipe, and follow symbolic links of other users.

    Raises:
        NotFoundError: (a class of TensorBoard) if the folder does not exist.
    """
    from tensorboard.compat.tensorflow_stub import errors

    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if why := _why_refused(entry):
                    refused[str(Path(folder).resolve() / entry.name)] = why
                else:
                    names.append(entry.name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise errors.NotFoundError(None, None, str(error)) from None
    except OSError as error:
        refused[str(Path(folder).resolve())] = f"can't be read: {error.strerror}"
    # Sort the names, because the first run determines the columns of the HParams page. `trials`
    # comes before `winner`, so the first run belongs to a trial.
    return sorted(names)


def _why_refused(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink() and (owner := foreign_link(entry.path)):
        return f"is a symbolic link that belongs to {owner}"
    if os.path.isdir(entry.path):  # noqa: PTH112 - `Path.is_dir` may raise an error
        return ""
    is_readable = os.path.isfile(entry.path) and os.access(entry.path, os.R_OK)  # noqa: PTH113
    return "" if is_readable else "is not a readable file"


LIVE = b"""\
// The page reloads its data every 30 s, unless the user has changed this in the page's settings.
try {
  const key = "_tb_global_settings";
  const settings = JSON.parse(localStorage.getItem(key) || "{}");
  if (!("autoReload" in settings)) {
    localStorage.setItem(key, JSON.stringify({...settings, autoReload: true}));
  }
} catch (error) {
  console.warn(error);
}
"""


def _live_assets() -> io.BytesIO:
    """Return a zip file with TensorBoard's web page, changed to reload the data every 30 s."""
    from tensorboard import assets

    first = b'<script src="index.js'
    with assets.get_default_assets_zip_provider()() as file:
        changed = io.BytesIO(file.read())
    with zipfile.ZipFile(changed, "a") as pages, warnings.catch_warnings(action="ignore"):
        page = pages.read("index.html")
        page = page.replace(first, b'<script src="live.js"></script>' + first, 1)
        # The zip file then contains `index.html` twice. TensorBoard reads the second copy.
        pages.writestr("index.html", page)
        pages.writestr("live.js", LIVE)
    changed.seek(0)
    return changed
