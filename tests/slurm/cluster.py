"""A private Slurm on 127.0.0.1 in one folder, with simulated GPUs."""

import contextlib
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from harness.slurm.nodes import listener
from tests.slurm.configuration import (
    CGROUP_CONF,
    GPU_TARGET,
    HOME,
    NUM_GPUS,
    Site,
    gres_conf,
    slurm_conf,
)

# The PATH of a normal user often lacks the folders with the daemons.
SEARCH_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo", "squeue", "scancel")
REMEDY = (
    "no Slurm here; on Debian and Ubuntu it comes by: "
    "apt-get install slurmctld slurmd slurm-client munge"
)
POLL_S = 0.3
PATIENCE = 3  # factor on every timeout of `wait_until`, because machines can be busy
CLIENT_TIMEOUT_S = 20
PORTS = range(10_000, 20_000)  # ports for the daemons, below Linux's ephemeral ports
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

# Shell code that mounts a file over /etc/hosts, so that jobs find the nodes by name.
HOSTS_SHELL = 'mount --bind "$0" /etc/hosts && exec "$@"'


class SlurmError(Exception):
    """The cluster or a client program failed."""


def is_installed() -> bool:
    """Whether Slurm and munge are installed."""
    return all(shutil.which(program, path=SEARCH_PATH) for program in PROGRAMS)


class SlurmCluster:
    """A private Slurm that runs during a `with` block; its jobs end with the block.

    Raises:
        SlurmError: if Slurm is not installed or does not start; the message quotes its logs.
    """

    def __init__(self, site: Site = HOME) -> None:
        self.site = site
        self.folder = Path()  # a new temporary folder per start
        self.port = 0
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """The variable by which client programs find this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> "SlurmCluster":
        if not is_installed():
            raise SlurmError(REMEDY)
        # In pytest's folder, the path of a socket could exceed the limit of 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)  # munged does not start if other users can't reach its socket
        try:
            self._write_configuration()
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Jobs

    def run(self, *command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
        """Run a client program and return its output.

        Raises:
            SlurmError: if the program fails or does not answer in time.
        """
        line = shlex.join(command)
        try:
            done = subprocess.run(
                command,
                cwd=cwd or self.folder,
                env={**_environment(), **(env or {}), **self.environment},
                capture_output=True,
                text=True,
                timeout=CLIENT_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise SlurmError(
                f"{shlex.join(command)}: no answer in {CLIENT_TIMEOUT_S} s{self.logs()}"
            ) from None
        if done.returncode != 0:
            raise SlurmError(f"{line}: exit code {done.returncode}: {done.stderr}")
        return done.stdout

    def sbatch(
        self,
        script: Path,
        *flags: str,
        cwd: Path,
        arguments: Sequence[str] = (),
        env: dict[str, str] | None = None,
    ) -> str:
        """Submit a script with flags of sbatch and the script's arguments; return the job's id."""
        words = ["--parsable", *flags, str(script), *arguments]
        return self.run("sbatch", *words, cwd=cwd, env=env).strip()

    def show(self, job_id: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`; each value is cut at its first space."""
        text = self.run("scontrol", "--oneliner", "show", "job", job_id)
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def state(self, job_id: str) -> str:
        """Return the job's state, such as RUNNING."""
        return self.show(job_id)["JobState"]

    def wait(self, job_id: str, states: Collection[str], timeout_s: float = 60) -> str:
        """Wait until the job is in one of the states, and return the state.

        Raises:
            SlurmError: if the wait takes too long, or the job ends in another state.
        """
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: self.state(job_id) in {*states, *ENDED}, timeout_s)
        known = self.show(job_id)
        if (state := known["JobState"]) not in states:
            facts = {name: known[name] for name in ("Reason", "ExitCode", "Restarts", "RunTime")}
            raise SlurmError(f"job {job_id}: {state}, not {states}, in {timeout_s} s: {facts}")
        return state

    def logs(self, num_lines: int = 5) -> str:
        """Return the last lines of each daemon's log."""
        parts = []
        for path in sorted(self.folder.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-num_lines:]
            parts.append("\n".join([f"\n-- {path.name}", *lines]))
        return "".join(parts)

    # Trouble

    def stop_controller(self) -> None:
        """Stop slurmctld, which saves its state first."""
        daemon = self.daemons.pop("slurmctld")
        daemon.terminate()
        daemon.wait(timeout=PATIENCE * 30)

    def restart_controller(self) -> None:
        """Restart slurmctld with its saved state."""
        self._spawn("slurmctld", "slurmctld", "-D")
        self._ready(self._is_listening, timeout_s=20)

    def kill_node(self, node: str, *job_ids: str) -> None:
        """Kill a node's slurmd and all processes of these jobs, which run only on this node.

        Slurm would notice the loss after SlurmdTimeout; here the node is set down at once.
        """
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait(timeout=10)
        for process in self.processes():
            folder = Path("/proc", str(process))
            with contextlib.suppress(OSError):
                title = (folder / "cmdline").read_bytes()
                variables = (folder / "environ").read_bytes().split(b"\0")
                if any(
                    f"[{job_id}." in title.decode()
                    or f"SLURM_JOB_ID={job_id}".encode() in variables
                    for job_id in job_ids
                ):
                    os.kill(process, signal.SIGKILL)
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")

    def restart_node(self, node: str) -> None:
        """Restart a node's slurmd, and wait until it accepts jobs."""
        self._spawn(node, *self._named_hosts(), "slurmd", "-D", "-N", node)
        self._ready(lambda: self.node_state(node) == "idle", timeout_s=30)

    def node_state(self, node: str) -> str:
        """Return a node's state, such as idle, without the marks that sinfo appends."""
        states = self.run("sinfo", "--noheader", "--Node", f"--nodes={node}", "--format=%T")
        return states.split()[0].rstrip("*~#!%$@^-+")  # sinfo prints a line per partition

    # Start and stop

    def _write_configuration(self) -> None:
        self.port, *_ = ports = free_ports(1 + len(self.site.nodes))
        user = pwd.getpwuid(os.getuid()).pw_name
        texts = {
            "slurm.conf": slurm_conf(self.site, self.folder, user, ports),
            "gres.conf": gres_conf(self.site, self.folder),
            "cgroup.conf": CGROUP_CONF,
            "hosts": f"127.0.0.1 localhost {' '.join(self.site.nodes)} {socket.gethostname()}\n",
            **self.site.files,
        }
        for name, text in texts.items():
            (self.folder / name).write_text(text)
        for number in range(NUM_GPUS):
            (self.folder / f"gpu{number}").symlink_to(GPU_TARGET)
        for name in ("state", *(f"spool/{node}" for node in self.site.nodes)):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))

    def _start(self) -> None:
        munge = {
            "key-file": "munge.key",
            "socket": "munge.socket",
            "pid-file": "munged.pid",
            "seed-file": "munge.seed",
            "log-file": "munged.log",
        }
        words = [f"--{option}={self.folder / name}" for option, name in munge.items()]
        self._spawn("munged", "munged", "--foreground", *words)
        self._ready((self.folder / "munge.socket").exists, timeout_s=10)
        self._spawn("slurmctld", "slurmctld", "-D", "-i")
        self._ready(self._is_listening, timeout_s=20)  # clients that call earlier would wait long
        for node in self.site.nodes:
            self._spawn(node, *self._named_hosts(), "slurmd", "-D", "-N", node)
        self._ready(self._all_idle, timeout_s=30)

    def _named_hosts(self) -> list[str]:
        """Return a prefix for the command of a daemon, so that its jobs find the nodes by name.

        Many containers forbid mounts: then the list is empty, and workers on several nodes fail.
        """
        unshare = ["unshare", "--mount"]
        if os.getuid() != 0:
            unshare = ["unshare", "--user", "--map-current-user", "--keep-caps", "--mount"]
        words = [*unshare, "sh", "-c", HOSTS_SHELL, str(self.folder / "hosts")]
        trial = subprocess.run([*words, "true"], capture_output=True, timeout=10)
        return words if trial.returncode == 0 else []

    def _spawn(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**_environment(), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C must not reach the daemons: this program stops them in order.
                start_new_session=True,
            )

    def _ready(self, condition: Callable[[], bool], timeout_s: float) -> None:
        def settled() -> bool:
            return bool(self._dead()) or condition()

        with contextlib.suppress(TimeoutError):
            wait_until(settled, timeout_s)
        if self._dead() or not condition():
            why = f"ended: {', '.join(self._dead()) or 'none'}; waited {timeout_s} s at most"
            raise SlurmError(f"Slurm did not start: {why}{self.logs()}")

    def _dead(self) -> list[str]:
        return [name for name, daemon in self.daemons.items() if daemon.poll() is not None]

    def _is_listening(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def _all_idle(self) -> bool:
        states = self.run("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
        return set(states) == {f"{node} idle" for node in self.site.nodes}

    def stop(self) -> None:
        """Cancel every job, end every process and remove the folder.

        Raises:
            SlurmError: if a process is still alive.
        """
        if "slurmctld" in self.daemons and "slurmctld" not in self._dead():
            with contextlib.suppress(SlurmError, TimeoutError):
                self.run("scancel", "--me")
                wait_until(lambda: not self.run("squeue", "--noheader"), timeout_s=10)
        self._terminate(*self.site.nodes)
        self._terminate("slurmctld")
        self._terminate("munged")
        # A job's steps outlive the daemon that started them.
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not self.processes(), timeout_s=5)
        left = self.processes()
        shutil.rmtree(self.folder, ignore_errors=True)
        if left:
            raise SlurmError(f"processes of the cluster are left: {left}")

    def _terminate(self, *names: str) -> None:
        daemons = [self.daemons.pop(name) for name in names if name in self.daemons]
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(timeout=10)

    def processes(self) -> list[int]:
        """Return all processes of the cluster: daemons, job steps and their children."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # the process has ended, or is another user's
                if self._owns(folder):
                    found.append(int(folder.name))
        return found

    def _owns(self, process: Path) -> bool:
        _, _, rest = (process / "stat").read_text().partition("(")
        name, _, rest = rest.rpartition(")")
        if rest.split()[0] in "ZX":  # a zombie has ended, although no parent has waited for it
            return False
        if name.startswith(("munged", "slurm")):
            # slurmstepd overwrites its environment with its title, but stays in its folder.
            return (process / "cwd").readlink() == self.folder
        variables = (process / "environ").read_bytes().split(b"\0")
        # A user's shell may also set SLURM_CONF, but it does not set SLURM_JOB_ID.
        return f"SLURM_CONF={self.folder}/slurm.conf".encode() in variables and any(
            variable.startswith(b"SLURM_JOB_ID=") for variable in variables
        )


def free_ports(count: int) -> list[int]:
    """Return different free ports outside of the range from which Linux gives ports to clients."""
    ports: set[int] = set()
    while len(ports) < count:
        with listener(PORTS, 1) as server:
            ports.add(server.getsockname()[1])
    return [*ports]


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = POLL_S) -> None:
    """Wait until the condition holds, at most PATIENCE times `timeout_s`.

    Raises:
        TimeoutError: if the condition does not hold by then.
    """
    deadline = time.monotonic() + PATIENCE * timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s")
        time.sleep(poll_s)


def _environment() -> dict[str, str]:
    """Return this process's environment without the variables of Slurm and the harness."""
    hidden = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SINFO_", "SCANCEL_", "HARNESS_")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(hidden)}
    return {**kept, "PATH": SEARCH_PATH}
