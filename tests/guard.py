"""A guard that kills all remaining processes of the tests when the tests end.

- The pytest process that the user started forks the guard, waits, and passes signals on to it.
- The guard is a subreaper: orphaned processes and daemons become its children.
- The guard's first child, a fork of pytest, runs the tests.

If one of the two pytest processes ends, even by SIGKILL, the guard kills the other one and all
processes that the tests started.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time

import psutil

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE_S = 10
STDIN = 0


def enter() -> None:
    """Return in a guarded child. The calling process waits, and ends with the child's exit code."""
    if sys.platform != "linux":
        return
    is_started_alive, stay_alive = os.pipe()
    # Block the signals until the guard handles them; earlier they would end only the guard.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})
    guard = os.fork()
    if guard == 0:
        os.close(stay_alive)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        tests = os.fork()
        if tests == 0:
            os.close(is_started_alive)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            return
        # A new name and session, so that a kill of pytest by name or group spares the guard.
        os.setsid()
        os.dup2(is_started_alive, STDIN)
        os.execv(sys.executable, [sys.executable, "-P", __file__, str(tests)])  # noqa: S606 - no shell is wanted
    os.close(is_started_alive)
    os._exit(_wait(guard))


def _wait(guard: int) -> int:
    """Pass signals on to the guard until it ends; return its exit code."""
    while True:
        received = signal.sigwaitinfo({*PASSED_ON, signal.SIGCHLD})
        if received.si_signo == signal.SIGCHLD:
            process, status = os.waitpid(guard, os.WNOHANG)
            if process == guard:
                return os.waitstatus_to_exitcode(status)
        elif received.si_code <= 0:  # a process sent it; a terminal's signals also reach the tests
            os.kill(guard, received.si_signo)


def main(tests: int) -> int:
    """Guard the process that runs the tests; return its exit code, or 128 plus its signal."""

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(tests, number)

    def end_with_started() -> None:
        os.read(STDIN, 1)
        pass_on(signal.SIGKILL, None)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    threading.Thread(target=end_with_started, daemon=True).start()
    while True:
        process, status = os.wait()
        if process == tests:
            break
    _end_descendants()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _end_descendants() -> None:
    """Kill all remaining processes, including those that start in the meantime."""
    deadline = time.monotonic() + PATIENCE_S
    while (left := _descendants()) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)


def _descendants() -> list[psutil.Process]:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return psutil.Process().children(recursive=True)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
