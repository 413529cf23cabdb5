"""The second test cluster with accounting: slurmdbd and MariaDB, all in the cluster's folder."""

import getpass
import shutil
import socket
import subprocess
from dataclasses import replace

from tests.slurm.cluster import SEARCH_PATH, SlurmCluster, SlurmError, free_ports
from tests.slurm.configuration import ELSEWHERE

PROGRAMS = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db")
REMEDY = (
    "no accounting here; on Debian and Ubuntu it comes by: "
    "apt-get install slurmdbd slurm-wlm-mysql-plugin mariadb-server"
)


def is_installed() -> bool:
    """Whether all that accounting needs is there."""
    return all(shutil.which(program, path=SEARCH_PATH) for program in PROGRAMS)


class AccountedCluster(SlurmCluster):
    """The cluster `elsewhere` with accounts. Its QOS `normal` allows an hour and three jobs."""

    def __init__(self) -> None:
        self.ports = free_ports(2)
        lines = (
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=localhost",
            f"AccountingStoragePort={self.ports[0]}",
            "AccountingStorageEnforce=associations,limits,qos",
            "AccountingStorageTRES=gres/gpu",
        )
        settings = "\n".join([*lines, ELSEWHERE.settings])
        super().__init__(replace(ELSEWHERE, settings=settings))

    def _start_accounting(self) -> None:
        if not is_installed():
            raise SlurmError(REMEDY)
        database, user = self.folder / "database", getpass.getuser()
        subprocess.run(
            ["mariadb-install-db", f"--user={user}", f"--datadir={database}", "--skip-test-db"],
            capture_output=True,
            check=True,
            timeout=120,
        )
        # Where there is no database slurmdbd makes it, and goes on with the handle of its failed
        # connection. That has lost its options, and libmariadb3 11.8.9 then reads no results.
        (self.folder / "database.sql").write_text("CREATE DATABASE slurm;\n")
        self._spawn(
            *("mariadbd", "mariadbd", "--no-defaults", f"--user={user}", f"--datadir={database}"),
            *(f"--socket={self.folder}/mariadb.socket", f"--port={self.ports[1]}"),
            *("--bind-address=127.0.0.1", "--skip-grant-tables", "--innodb-lock-wait-timeout=900"),
            f"--init-file={self.folder}/database.sql",
        )
        self._ready(lambda: is_listening(self.ports[1]), timeout_s=60)
        text = f"""\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={self.ports[0]}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.socket
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={self.ports[1]}
StorageUser={user}
StorageLoc=slurm
PidFile={self.folder}/slurmdbd.pid
LogFile=/dev/null
CommunicationParameters=NoInAddrAny
"""
        conf = self.folder / "slurmdbd.conf"
        conf.write_text(text)
        conf.chmod(0o600)
        with (self.folder / "slurm.conf").open("a") as file:
            file.write(f"AccountingStoragePass={self.folder}/munge.socket\n")
        self._spawn("slurmdbd", "slurmdbd", "-D")
        self._ready(lambda: is_listening(self.ports[0]), timeout_s=60)
        sacctmgr = ("sacctmgr", "--immediate")
        self.run(*sacctmgr, "add", "cluster", "tests")
        self.run(*sacctmgr, "add", "account", "lab")
        self.run(*sacctmgr, "add", "user", user, "account=lab")
        # root is known already, with an account of its own.
        self.run(*sacctmgr, "modify", "user", user, "set", "DefaultAccount=lab")

    def _start(self) -> None:
        super()._start()
        # Slurm knows GPUs as a resource from when slurmctld has told slurmdbd of them.
        modify = ("sacctmgr", "--immediate", "modify")
        self.run(*modify, "account", "lab", "set", "GrpTRES=node=2")
        limits = ("MaxWall=60", "MaxSubmitJobsPerUser=3", "GrpTRES=gres/gpu=2")
        self.run(*modify, "qos", "normal", "set", *limits)

    def _stop_accounting(self) -> None:
        self._terminate("slurmdbd")
        self._terminate("mariadbd")


def is_listening(port: int) -> bool:
    """Whether somebody listens on a port of 127.0.0.1."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
