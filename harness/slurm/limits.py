"""What the site allows a job: the limits of its partitions, of an account and of a QOS.

At many sites sbatch accepts a job that is longer than its partition allows, and it waits for ever.
"""

import getpass
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.errors import InputError, RunError
from harness.slurm import client

TIMEOUT_S = 10
DEFAULT_ARRAY_SIZE = 1001  # indices are below it


@dataclass(frozen=True)
class Partition:
    """A partition's limits and what happens to a job that has to make room."""

    name: str
    is_default: bool
    max_time: str  # as Slurm writes it
    preempt_mode: str  # OFF, REQUEUE, CANCEL or SUSPEND
    grace_s: float


@dataclass(frozen=True)
class Quota:
    """The limits of an account or a QOS; an empty text and None are no limit."""

    name: str  # for people: `account lab`
    max_time: str = ""
    max_jobs: int | None = None  # of one user, waiting or running
    qos: str = ""  # an account's, where a job names none


@dataclass(frozen=True)
class Limits:
    """All limits of a site."""

    partitions: tuple[Partition, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)  # of `scontrol show config`
    accounts: Mapping[str, Quota] = field(default_factory=dict)
    qos: Mapping[str, Quota] = field(default_factory=dict)
    default_account: str = ""

    @property
    def array_size(self) -> int:
        """The indices of an array are below it."""
        value = self.settings.get("MaxArraySize", "")
        return int(value) if value.isdigit() else DEFAULT_ARRAY_SIZE


def read_limits() -> Limits:
    """Ask Slurm for all of it, in two calls, or five where there is accounting.

    What Slurm does not tell, as where its programs are forbidden, limits nothing.
    """
    settings = parse_settings(_ask("scontrol", "show", "config"))
    partitions = parse_partitions(_ask("scontrol", "--oneliner", "show", "partition"))
    if "slurmdbd" not in settings.get("AccountingStorageType", ""):
        return Limits(partitions, settings)
    sacctmgr = ("sacctmgr", "--noheader", "--parsable2", "show")
    user = getpass.getuser()
    own = ("assoc", f"user={user}", "format=Account,MaxWall,MaxSubmit,DefaultQOS,QOS")
    return Limits(
        partitions,
        settings,
        parse_quotas("account", _ask(*sacctmgr, *own)),
        parse_quotas("qos", _ask(*sacctmgr, "qos", "format=Name,MaxWall,MaxSubmitPU")),
        _ask(*sacctmgr, "user", f"name={user}", "format=DefaultAccount").strip(),
    )


def _ask(*args: str) -> str:
    try:
        return client.ask(*args, timeout_s=TIMEOUT_S)
    except (InputError, RunError):
        return ""


def parse_settings(text: str) -> dict[str, str]:
    """The lines `Name = value` of `scontrol show config`."""
    return dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", text, re.MULTILINE))


def parse_partitions(text: str) -> tuple[Partition, ...]:
    """The lines of `scontrol --oneliner show partition`."""
    found = []
    for line in text.splitlines():
        values = dict(re.findall(r"(\w+)=(\S*)", line))
        if "PartitionName" in values:
            found.append(
                Partition(
                    values["PartitionName"],
                    values.get("Default") == "YES",
                    values.get("MaxTime", "UNLIMITED"),
                    values.get("PreemptMode", "OFF"),
                    float(values.get("GraceTime", "0") or 0),
                )
            )
    return tuple(found)


def parse_quotas(kind: str, text: str) -> dict[str, Quota]:
    """The lines `name|MaxWall|MaxSubmit` of sacctmgr; an account's may have `|DefaultQOS|QOS`."""
    found = {}
    for line in text.splitlines():
        name, max_time, max_jobs, default_qos, all_qos, *_ = [*line.split("|"), *[""] * 4]
        count = int(max_jobs) if max_jobs.isdigit() else None
        qos = default_qos or ("" if "," in all_qos else all_qos)
        found[name] = Quota(f"{kind} {name}", max_time, count, qos)
    return found


def seconds(text: str) -> float:
    """A time limit of sbatch in seconds: minutes, `m:s`, `h:m:s`, `d-h`, `d-h:m`, `d-h:m:s`.

    Infinity for `UNLIMITED` and what is no time.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not found:
        return float("inf")
    days, first, second, third = (int(part or 0) for part in found.groups())
    if found[1]:
        return 86_400 * days + 3600 * first + 60 * second + third
    if found[4]:
        return 3600 * first + 60 * second + third
    return 60 * first + second


def check_limits(options: Mapping[str, str], num_jobs: int, limits: Limits) -> None:
    """Refuse what sbatch would refuse or what would wait for ever.

    Args:
        options: of sbatch by their long names, as all layers together have them.
        num_jobs: that are submitted now.
        limits: of the site.

    Raises:
        InputError: one line with the value, the limit and the remedy.
    """
    _check_time(options, limits)
    account = limits.accounts.get(options.get("account") or limits.default_account)
    qos = limits.qos.get(options.get("qos") or (account.qos if account else ""))
    for quota in filter(None, (qos, account)):
        if seconds(options.get("time", "")) > seconds(quota.max_time) and "time" in options:
            raise InputError(
                f"--time {options['time']}: {quota.name} allows {quota.max_time} at most; give less"
            )
        if quota.max_jobs is not None and num_jobs > quota.max_jobs:
            raise InputError(
                f"{num_jobs} jobs: {quota.name} allows {quota.max_jobs} of one user at a time; "
                "give fewer seeds, or all in one job by --pack"
            )


def _check_time(options: Mapping[str, str], limits: Limits) -> None:
    named = options.get("partition", "").split(",")
    chosen = [each for each in limits.partitions if each.name in named]
    chosen = chosen or [each for each in limits.partitions if each.is_default and named == [""]]
    wanted = options.get("time", "")
    if not chosen or not wanted or seconds(wanted) == float("inf"):
        return
    longest = max(chosen, key=lambda each: seconds(each.max_time))
    if seconds(wanted) > seconds(longest.max_time):
        others = [p.name for p in limits.partitions if seconds(p.max_time) >= seconds(wanted)]
        remedy = f", or another --partition: {', '.join(others)}" if others else ""
        raise InputError(
            f"--time {wanted}: partition {longest.name} allows {longest.max_time} at most; give "
            f"less, since a run goes on after each time limit{remedy}"
        )
