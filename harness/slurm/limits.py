"""What the site allows a job: the limits of its partitions, of an account and of a QOS.

At many sites sbatch accepts a job that is longer than its partition allows, and it waits for ever.
"""

import getpass
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from harness.errors import InputError, RunError
from harness.slurm import client
from harness.slurm.resources import UNITS_MB, UNLIMITED, asked_s, asked_tres, seconds

TIMEOUT_S = 10
DEFAULT_ARRAY_SIZE = 1001  # indices are below it
DEFAULT_QOS = "normal"  # the first that slurmdbd makes

# What sacctmgr calls the limits that a single job, or this user alone, can run into.
COMMON_FIELDS = {"max_time": "MaxWall", "group_jobs": "GrpSubmit", "group": "GrpTRES",
                 "of_job": "MaxTRES", "of_node": "MaxTRESPerNode", "minutes": "MaxTRESMins",
                 "running_minutes": "GrpTRESRunMins"}  # fmt: skip
ACCOUNT_FIELDS = {"name": "Account", "max_jobs": "MaxSubmit", "max_running": "MaxJobs",
                  "default_qos": "DefaultQOS", "qos": "QOS", **COMMON_FIELDS,
                  "partition": "Partition"}  # fmt: skip
QOS_FIELDS = {"name": "Name", "max_jobs": "MaxSubmitPU", "max_running": "MaxJobsPU",
              "of_user": "MaxTRESPU", "of_account": "MaxTRESPA", "least": "MinTRES",
              "group_running": "GrpJobs", "account_running": "MaxJobsPA", "flags": "Flags",
              **COMMON_FIELDS}  # fmt: skip
GROUP_FIELDS = {"name": "Account", "user": "User", "group_jobs": "GrpSubmit", "group": "GrpTRES",
                "group_running": "GrpJobs", "running_minutes": "GrpTRESRunMins",
                "parent": "ParentName"}  # fmt: skip
IN = " in partition "  # `lab in partition long`: limits of an account that hold there alone
WHAT = {"node": "nodes", "cpu": "CPUs", "mem": "MB of memory", "gres/gpu": "GPUs"}


@dataclass(frozen=True)
class Partition:
    """A partition's limits and what happens to a job that has to make room."""

    name: str
    is_default: bool
    max_time: str  # as Slurm writes it
    preempt_mode: str  # OFF, REQUEUE, CANCEL or GANG,SUSPEND
    grace_s: float
    qos: str = ""  # whose limits hold for all of its jobs
    max_nodes: int | None = None  # of a job


@dataclass(frozen=True)
class Quota:
    """The limits of an account or a QOS; an empty text and None are no limit."""

    name: str  # for people: `account lab`
    max_time: str = ""
    max_jobs: int | None = None  # of one user, waiting or running
    qos: str = ""  # an account's, where a job names none
    group_jobs: int | None = None  # of all its users, waiting or running
    max_running: int | None = None  # at a time; 0 lets none begin
    tres: Mapping[str, float] = field(default_factory=dict)  # that one job can get; memory in MB
    flags: frozenset[str] = frozenset()  # a QOS's: which limits of a partition it overrides
    of_node: Mapping[str, float] = field(default_factory=dict)  # that one job can get of each node
    least: Mapping[str, float] = field(default_factory=dict)  # that one job has to ask for
    minutes: Mapping[str, float] = field(default_factory=dict)  # times the time limit of a job
    parent: str = ""  # of an account, whose group limits hold too


@dataclass(frozen=True)
class Limits:
    """All limits of a site."""

    partitions: tuple[Partition, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)  # of `scontrol show config`
    accounts: Mapping[str, Quota] = field(default_factory=dict)
    qos: Mapping[str, Quota] = field(default_factory=dict)
    default_account: str = ""
    own_jobs: tuple[tuple[str, ...], ...] = ()  # account, QOS and partition of each in the queue

    @property
    def array_size(self) -> int:
        """The indices of an array are below it."""
        value = self.settings.get("MaxArraySize", "")
        return int(value) if value.isdigit() else DEFAULT_ARRAY_SIZE


def read_limits() -> Limits:
    """Ask Slurm for all of it, in two calls, or about eight where accounts have limits.

    What Slurm does not tell, as where its programs are forbidden, limits nothing.
    """
    settings = read_settings()
    partitions = parse_partitions(_ask("scontrol", "--oneliner", "show", "partition"))
    # Without it Slurm keeps accounts and holds nobody to their limits.
    if "limits" not in settings.get("AccountingStorageEnforce", ""):
        return Limits(partitions, settings)
    sacctmgr = ("sacctmgr", "--noheader", "--parsable2", "show")
    user = getpass.getuser()
    assoc = (*sacctmgr, "assoc", f"cluster={settings.get('ClusterName', '')}")
    accounts = parse_quotas("account", _ask(*assoc, f"user={user}", _format(ACCOUNT_FIELDS)))
    new = {name.partition(IN)[0] for name in accounts}
    while new:  # one level of the accounts above after another
        named = f"account={','.join(sorted(new))}"
        found = parse_groups(_ask(*assoc, named, _format(GROUP_FIELDS)), accounts)
        accounts |= found
        new = {each.parent for each in found.values() if each.parent} - accounts.keys()
    queued = _ask("squeue", "--me", "--array", "--noheader", "--format=%a|%q|%P")
    # Where a user names clusters, older ones print a line for each cluster too.
    jobs = [tuple(line.split("|")) for line in queued.split()]
    return Limits(
        partitions,
        settings,
        accounts,
        parse_quotas("qos", _ask(*sacctmgr, "qos", _format(QOS_FIELDS))),
        _ask(*sacctmgr, "user", f"name={user}", "format=DefaultAccount").strip(),
        tuple(job for job in jobs if len(job) == 3),
    )


def read_settings() -> dict[str, str]:
    """Slurm's configuration, in one call; empty if it does not tell it."""
    return parse_settings(_ask("scontrol", "show", "config"))


def _format(fields: Mapping[str, str]) -> str:
    return f"format={','.join(fields.values())}"


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
    lines = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines()]
    return tuple(
        Partition(
            values["PartitionName"],
            values.get("Default") == "YES",
            values.get("MaxTime", "UNLIMITED"),
            values.get("PreemptMode", "OFF"),
            float(values.get("GraceTime", "0") or 0),
            values.get("QoS", "").replace("N/A", ""),
            _number(values.get("MaxNodes", "")),
        )
        for values in lines
        if "PartitionName" in values
    )


def parse_quotas(kind: str, text: str) -> dict[str, Quota]:
    """The lines of sacctmgr with the fields of ACCOUNT_FIELDS or QOS_FIELDS."""
    fields = QOS_FIELDS if kind == "qos" else ACCOUNT_FIELDS
    found = {}
    for line in text.splitlines():
        values = dict(zip(fields, line.split("|"), strict=False))
        name = IN.join(filter(None, (values["name"], values.get("partition"))))
        found[name] = Quota(
            f"{kind} {name}",
            values.get("max_time", ""),
            _number(values.get("max_jobs", "")),
            _default_qos(values),
            _number(values.get("group_jobs", "")),
            _least(values, "max_running", "group_running", "account_running"),
            _tres(values, "of_job", "of_user", "of_account", "group"),
            flags=frozenset(filter(None, values.get("flags", "").split(","))),
            of_node=_tres(values, "of_node"),
            least=_tres(values, "least"),
            minutes=_tres(values, "minutes", "running_minutes"),
        )
    return found


def _default_qos(values: Mapping[str, str]) -> str:
    """The QOS of an account's jobs that name none: its default, its only one, or `normal`."""
    all_qos = values.get("qos", "").split(",")
    return values.get("default_qos", "") or (
        all_qos[0] if len(all_qos) == 1 else DEFAULT_QOS if DEFAULT_QOS in all_qos else ""
    )


def parse_groups(text: str, accounts: Mapping[str, Quota]) -> dict[str, Quota]:
    """The accounts in the lines without a user, with the limits of all their users together.

    `text` has GROUP_FIELDS; `accounts` are those known so far.
    """
    found = {}
    for line in text.splitlines():
        values = dict(zip(GROUP_FIELDS, line.split("|"), strict=False))
        if values.get("user", ""):
            continue
        running = _least(values, "group_running")
        for name in (values["name"], *(n for n in accounts if n.startswith(values["name"] + IN))):
            own = accounts.get(name, Quota(f"account {name}"))
            found[name] = replace(
                own,
                group_jobs=own.group_jobs or _number(values.get("group_jobs", "")),
                max_running=running if own.max_running is None else own.max_running,
                tres=_tightest(own.tres, _tres(values, "group")),
                minutes=_tightest(own.minutes, _tres(values, "running_minutes")),
                parent=values.get("parent", ""),
            )
    return found


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _least(values: Mapping[str, str], *names: str) -> int | None:
    numbers = [number for n in names if (number := _number(values.get(n, ""))) is not None]
    return min(numbers, default=None)


def _tres(values: Mapping[str, str], *names: str) -> dict[str, float]:
    """The least of each resource in texts such as `cpu=8,gres/gpu:a100=2,mem=100G`."""
    found: dict[str, float] = {}
    text = ",".join(values.get(name, "") for name in names)
    for name, amount, unit in re.findall(r"([\w/:.-]+)=(\d+(?:\.\d+)?)([KMGTP]?)", text):
        value = float(amount) * (UNITS_MB.get(unit, 1) if name == "mem" else 1)
        found[name] = min(found.get(name, UNLIMITED), value)
    return found


def _tightest(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {
        name: min(first.get(name, UNLIMITED), second.get(name, UNLIMITED))
        for name in (*first, *second)
    }


def check_limits(options: Mapping[str, str], num_jobs: int, limits: Limits) -> None:
    """Refuse what sbatch would refuse or what would wait for ever.

    Args:
        options: of sbatch by their long names, as all layers together have them.
        num_jobs: that are submitted now.

    Raises:
        InputError: one line with the value, the limit and the remedy.
    """
    account = _account(options, limits)
    qos = limits.qos.get(options.get("qos") or (account.qos if account else ""))
    flags = qos.flags if qos else frozenset()
    _check_partition(options, limits, flags)
    of_partitions = {each.qos for each in _partitions(options, limits)}
    first = limits.qos.get(next(iter(of_partitions))) if len(of_partitions) == 1 else None
    if first and qos and "OverPartQOS" in flags:
        first, qos = qos, first
    accounts = []  # with those above it
    while account and account not in accounts:
        accounts.append(account)
        account = limits.accounts.get(account.parent)
    # Of each limit only the first that is set holds.
    set_before: set[str] = set()
    for quotas in ([first], [qos], accounts):
        found = [
            problem
            for quota in quotas
            if quota
            for problem in _problems(quota, options, num_jobs, own_jobs=limits.own_jobs)
        ]
        for limit, problem in found:
            if problem and limit not in set_before:
                raise InputError(problem)
        set_before |= {limit for limit, _ in found}


def _problems(
    quota: Quota, options: Mapping[str, str], num_jobs: int, *, own_jobs: Iterable[tuple[str, ...]]
) -> Iterator[tuple[str, str]]:
    """Each limit that is set, and why it refuses the jobs; empty if it does not."""
    if quota.max_time:
        is_long = asked_s(options) > seconds(quota.max_time)
        told = f"--time {options.get('time')}: {quota.name} allows {quota.max_time} at most"
        yield "time", f"{told}; give less" if is_long else ""
    for limit, most in (("jobs", quota.max_jobs), ("all jobs", quota.group_jobs)):
        if most is not None:
            names = [{f"account {a}", f"account {a}{IN}{p}", f"qos {q}"} for a, q, p in own_jobs]
            queued = sum(quota.name in each for each in names)
            beside = f" beside {queued} of yours in the queue" if queued else ""
            whose = "one user" if limit == "jobs" else "all its users"
            jobs = f"{num_jobs} job{'s' if num_jobs > 1 else ''}"
            told = f"{jobs}{beside}: {quota.name} allows {most} of {whose} at a time"
            remedy = "give fewer seeds, all in one job by --pack, or wait"
            yield limit, f"{told}; {remedy}" if num_jobs + queued > most else ""
    if quota.max_running is not None:
        told = f"{quota.name} lets no job begin at present; name another --qos or --account"
        yield "running", told if quota.max_running == 0 else ""
    yield from _tres_problems(quota, options)


def _tres_problems(quota: Quota, options: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    asked = asked_tres(options)
    asked_min = asked_s(options) / 60
    limits = (
        ("", quota.tres, 1.0),
        (" a node", quota.of_node, 1 / asked["node"]),
        (" times minutes", quota.minutes, asked_min if asked_min < UNLIMITED else 0.0),
    )
    for each, most_of, times in limits:
        for name, most in most_of.items():
            amount = asked.get(name, 0) * times
            told = f"{amount:g} {WHAT.get(name, name)}{each}: {quota.name} allows {most:g} at most"
            remedy = "give less, or name another --qos or --account"
            problem = f"{told}, and the job would wait for ever; {remedy}"
            yield f"{name}{each}", problem if amount > most else ""
    for name, least in quota.least.items():
        amount = asked.get(name, least)
        told = f"{amount:g} {WHAT.get(name, name)}: {quota.name} wants {least:g} at least"
        problem = f"{told}, and the job would wait for ever; ask for more, or name another --qos"
        yield f"least {name}", problem if amount < least else ""


def _account(options: Mapping[str, str], limits: Limits) -> Quota | None:
    """The limits of a job's account: in its partition, if the account has some there alone."""
    name = options.get("account", limits.default_account)
    everywhere = limits.accounts.get(name)
    names = [f"{name}{IN}{each.name}" for each in _partitions(options, limits)]
    found = [limits.accounts.get(each, everywhere) for each in names] or [everywhere]
    return found[0] if all(each == found[0] for each in found) else None  # else one may be enough


def _partitions(options: Mapping[str, str], limits: Limits) -> list[Partition]:
    """The partitions that a job may be in."""
    named = options.get("partition", "").split(",")
    chosen = [each for each in limits.partitions if each.name in named]
    return chosen or [each for each in limits.partitions if each.is_default and named == [""]]


def _check_partition(options: Mapping[str, str], limits: Limits, flags: Collection[str]) -> None:
    """Refuse what all partitions forbid, unless the job's QOS has a flag that overrides it."""
    chosen = _partitions(options, limits)
    nodes = asked_tres(options)["node"]
    if (
        chosen
        and "PartitionMaxNodes" not in flags
        and all(each.max_nodes is not None and nodes > each.max_nodes for each in chosen)
    ):
        most = max(each.max_nodes or 0 for each in chosen)
        names = ", ".join(each.name for each in chosen)
        raise InputError(
            f"--nodes {nodes:g}: partition {names} allows {most} at most; give fewer, or another "
            "--partition"
        )
    if not chosen or "PartitionTimeLimit" in flags:
        return
    wanted_s = asked_s(options)
    longest = max(chosen, key=lambda each: seconds(each.max_time))
    if wanted_s > seconds(longest.max_time):
        others = [p.name for p in limits.partitions if seconds(p.max_time) >= wanted_s]
        remedy = f", or another --partition: {', '.join(others)}" if others else ""
        raise InputError(
            f"--time {options['time']}: partition {longest.name} allows {longest.max_time} at "
            f"most; give less, since a run goes on after each time limit{remedy}"
        )
