"""What a site allows, as Slurm's programs word it, and what is refused by it."""

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import InputError
from harness.slurm import submit
from harness.slurm.limits import (
    Limits,
    Partition,
    Quota,
    check_limits,
    parse_groups,
    parse_partitions,
    parse_quotas,
    parse_settings,
    read_limits,
)
from harness.slurm.resources import asked_tres, seconds
from harness.slurm.sbatch_options import SiteOptions, values_of_all
from tests.conftest import JOBS, Harness, write_program

PARTITIONS = """\
PartitionName=gpu Default=YES GraceTime=0 MaxTime=1-00:00:00 PreemptMode=OFF Nodes=n10
PartitionName=short Default=NO GraceTime=10 MaxTime=00:01:00 PreemptMode=CANCEL
PartitionName=open MaxTime=UNLIMITED QoS=N/A MaxNodes=UNLIMITED
PartitionName=debug MaxTime=UNLIMITED QoS=small MaxNodes=2
"""
LIMITS = Limits(
    parse_partitions(PARTITIONS),
    qos={
        "normal": Quota("qos normal", "02:00:00", 3, tres={"gres/gpu": 4}),
        "small": Quota("qos small", "", 2, tres={"gres/gpu": 1, "gres/gpu:a100": 0, "mem": 4096}),
        "closed": Quota("qos closed", max_running=0),
        "over": Quota("qos over", tres={"gres/gpu": 8}, flags=frozenset({"OverPartQOS"})),
        "long": Quota("qos long", "7-0", flags=frozenset({"PartitionTimeLimit"})),
        "wide": Quota("qos wide", flags=frozenset({"PartitionMaxNodes"})),
        "large": Quota("qos large", least={"gres/gpu": 2}, of_node={"cpu": 4}),
        "budget": Quota("qos budget", minutes={"gres/gpu": 60}),
    },
    own_jobs=(("lab", "normal", "gpu"), ("lab", "other", "short")),
    accounts={
        "lab": Quota("account lab", "", 5),
        "full": Quota("account full", group_jobs=1, tres={"node": 2, "cpu": 8}),
        "shared": Quota("account shared", qos="normal", parent="faculty"),
        "child": Quota("account child", tres={"cpu": 16}, parent="faculty"),
        "faculty": Quota("account faculty", group_jobs=4, tres={"cpu": 2}, parent="root"),
    },
)


def test_what_slurm_says_is_read() -> None:
    """Partitions, settings with their units, and quotas with limits left out."""
    assert LIMITS.partitions[1] == Partition("short", False, "00:01:00", "CANCEL", 10.0)
    assert [each.is_default for each in LIMITS.partitions] == [True, False, False, False]
    assert [(each.qos, each.max_nodes) for each in LIMITS.partitions[2:]] == [
        ("", None),
        ("small", 2),
    ]
    settings = parse_settings("Configuration data\nMaxArraySize     = 100\nKillWait = 2 sec\n")
    assert settings == {"MaxArraySize": "100", "KillWait": "2 sec"}
    assert (Limits(settings=settings).array_size, Limits().array_size) == (100, 1001)
    qos = (
        "a|7|4|gres/gpu=3|cpu=9|gres/gpu=1|||OverPartQOS,PartitionTimeLimit|1-00:00:00|9|cpu=8,gres/gpu=2,mem=1G|"
        "|node=1|cpu=60|cpu=40\nb||||||0|2|||||cpu=9\n"
    )
    assert parse_quotas("qos", qos) == {
        "a": Quota(
            *("qos a", "1-00:00:00", 7, "", 9, 4, {"gres/gpu": 2, "cpu": 8, "mem": 1024}),
            flags=frozenset({"OverPartQOS", "PartitionTimeLimit"}),
            of_node={"node": 1},
            least={"gres/gpu": 1},
            minutes={"cpu": 40},
        ),
        "b": Quota("qos b", max_running=0, tres={"cpu": 9}),
    }
    rows = "a||||long\nb|||short|long,short\nc|||||||node=4|\nd||||normal,a\ne||||a,b\n"
    accounts = parse_quotas("account", rows)
    assert accounts == {
        "a": Quota("account a", "", None, "long"),
        "b": Quota("account b", "", None, "short"),
        "c": Quota("account c", tres={"node": 4}),
        "d": Quota("account d", qos="normal"),
        "e": Quota("account e"),
    }
    groups = "a||5||||faculty\na|me|6||\nc|||node=2,cpu=7|3|cpu=9\nfaculty||1||||root\n"
    assert parse_groups(groups, accounts) == {
        "a": Quota("account a", "", None, "long", 5, parent="faculty"),
        "c": Quota("account c", max_running=3, tres={"node": 2, "cpu": 7}, minutes={"cpu": 9}),
        "faculty": Quota("account faculty", group_jobs=1, parent="root"),
    }


@pytest.mark.parametrize(
    ("text", "time_s"),
    [
        *(("30", 1800), ("30:10", 1810), ("2:30:05", 9005), ("1-12", 129_600)),
        *(("1-12:30", 131_400), ("1-00:00:05", 86_405), ("UNLIMITED", float("inf"))),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(text: str, time_s: float) -> None:
    """A number alone is minutes."""
    assert seconds(text) == time_s


@pytest.mark.parametrize(
    ("options", "num_jobs", "said"),
    [
        ({"time": "02:00:00", "partition": "short"}, 1, "short allows 00:01:00.*gpu, open, debug"),
        ({"time": "2-0"}, 1, "partition gpu allows 1-00:00:00.*--partition: open, debug"),
        ({"time": "3:00:00", "qos": "normal"}, 1, "qos normal allows 02:00:00"),
        ({"qos": "normal"}, 3, "3 jobs beside 1 of yours in .*: qos normal allows 3 of one user"),
        ({"account": "lab"}, 4, "4 jobs beside 2 of yours in the queue: account lab allows 5"),
        ({"account": "full"}, 2, "2 jobs: account full allows 1 of all its users"),
        ({"account": "child", "cpus-per-task": "4"}, 1, "4 CPUs: account faculty allows 2 "),
        ({"account": "child"}, 5, "5 jobs: account faculty allows 4 of all its users"),
        ({"gres": "gpu:1", "qos": "large"}, 1, "1 GPUs: qos large wants 2 at least"),
        ({"gres": "none", "qos": "large"}, 1, "0 GPUs: qos large wants 2 at least"),
        ({"cpus-per-task": "5", "nodes": "2", "qos": "large"}, 1, "5 CPUs a node: .* allows 4 "),
        ({"gres": "gpu:2", "time": "31", "qos": "budget"}, 1, "62 GPUs times minutes: .* 60 at"),
        ({"qos": "closed"}, 1, "qos closed lets no job begin"),
        ({"gres": "gpu:5", "qos": "normal"}, 1, "5 GPUs: qos normal allows 4 .* wait for ever"),
        ({"gres": "gpu:t4:2", "partition": "debug"}, 1, "2 GPUs: qos small allows 1"),
        ({"gpus": "a100:1", "partition": "debug"}, 1, "1 gres/gpu:a100: qos small allows 0"),
        ({"mem": "3G", "nodes": "2", "partition": "debug"}, 1, "6144 MB .* allows 4096"),
        ({"nodes": "3", "partition": "debug"}, 1, "--nodes 3: partition debug allows 2"),
        ({"nodes": "3-5", "account": "full"}, 1, "3 nodes: account full allows 2"),
        ({"cpus-per-task": "5", "nodes": "2", "account": "full"}, 1, "10 CPUs: .* full allows 8"),
        ({"time": "3:00:00", "account": "shared"}, 1, "qos normal allows 02:00:00"),
        ({"time": "0"}, 1, "--time 0: partition gpu allows 1-00:00:00.*--partition: open, debug"),
        ({"time": "UNLIMITED"}, 1, "--time UNLIMITED: partition gpu allows 1-00:00:00"),
        ({"time": "0:00", "partition": "open", "qos": "normal"}, 1, "qos normal allows 02:00:00"),
        ({"time": "8-0", "qos": "long"}, 1, "--time 8-0: qos long allows 7-0"),
        ({"nodes": "3", "partition": "debug", "qos": "long"}, 1, "--nodes 3: partition debug"),
        ({"time": "2-0", "qos": "wide"}, 1, "--time 2-0: partition gpu"),
    ],
)
def test_what_would_wait_for_ever_is_refused(
    options: dict[str, str], num_jobs: int, said: str
) -> None:
    """The value, the limit and what to give instead are in one line."""
    with pytest.raises(InputError, match=said):
        check_limits(options, num_jobs, LIMITS)


def test_what_is_allowed_or_not_known_passes() -> None:
    """Of several partitions one is enough; without an answer of Slurm nothing is limited."""
    check_limits({"time": "60", "partition": "short,gpu", "qos": "other"}, 3, LIMITS)
    check_limits({"partition": "short"}, 1, LIMITS)
    check_limits({"time": "02:00:00", "qos": "normal"}, 1, LIMITS)  # exactly what it allows
    check_limits({"time": "9-0"}, 9000, Limits())
    check_limits({}, 9000, LIMITS)
    check_limits({"time": "soon"}, 1, LIMITS)  # sbatch says what is wrong
    check_limits({"time": "0", "partition": "open"}, 1, LIMITS)
    # A QOS may have flags to go beyond its partition.
    check_limits({"time": "2-0", "qos": "long"}, 1, LIMITS)
    check_limits({"nodes": "3", "partition": "debug", "qos": "wide"}, 1, LIMITS)
    # Where several set the same limit: the partition's QOS, the job's QOS, then the account.
    check_limits({"gres": "gpu:1", "partition": "debug", "qos": "normal"}, 1, LIMITS)
    check_limits({"gres": "gpu:8", "partition": "debug", "qos": "over"}, 1, LIMITS)
    check_limits({"gres": "gpu:9", "partition": "debug,open"}, 1, LIMITS)
    check_limits({"gres": "none", "mem": "0", "nodes": "2", "account": "full"}, 1, LIMITS)
    some = {"gres": "gpu:1", "cpus-per-task": "4", "nodes": "2", "qos": "large"}
    check_limits(some, 1, LIMITS)
    for option in ("gpus-per-task=1", "tres-per-task=gres/gpu:1", "gres=gpu:t4"):
        name, _, value = option.partition("=")
        check_limits({name: value, "qos": "large"}, 1, LIMITS)  # how many is not known
    check_limits({"gres": "gpu:2", "time": "30", "qos": "budget"}, 1, LIMITS)
    check_limits({"gres": "gpu:2", "qos": "budget"}, 1, LIMITS)
    lab = dataclasses.replace(LIMITS, default_account="lab")
    with pytest.raises(InputError, match="account lab allows 5"):
        check_limits({}, 6, lab)


def test_limits_of_an_account_in_one_partition_hold_there_alone() -> None:
    """In whatever order sacctmgr lists them; the limits for all of the account's users hold too."""
    limited = {"short": "00:00:30", "gpu": "7-00:00:00", "": "00:30:00"}
    rows = [f"lab|||||{time}|||||||{partition}" for partition, time in limited.items()]
    limits = dataclasses.replace(LIMITS, default_account="lab")
    for lines in (rows, rows[::-1]):
        accounts = parse_quotas("account", "\n".join(lines))
        accounts |= parse_groups("lab|||cpu=8|||root\n", accounts)
        limits = dataclasses.replace(limits, accounts=accounts)
        check_limits({"time": "1-0"}, 1, limits)  # gpu is the default
        check_limits({"time": "1-0", "partition": "gpu,open"}, 1, limits)
        with pytest.raises(InputError, match="lab in partition short allows 00:00:30"):
            check_limits({"time": "1", "partition": "short"}, 1, limits)
        with pytest.raises(InputError, match="account lab allows 00:30:00 at"):
            check_limits({"time": "31", "partition": "open"}, 1, limits)
        with pytest.raises(InputError, match="9 CPUs: account lab in partition gpu allows 8"):
            check_limits({"cpus-per-task": "9"}, 1, limits)
        accounts["lab in partition gpu"] = Quota("account lab in partition gpu", max_jobs=2)
        check_limits({}, 1, limits)  # beside one there
        with pytest.raises(InputError, match="2 jobs beside 1 of yours in the queue"):
            check_limits({}, 2, limits)


def test_a_later_layer_wins() -> None:
    """The script, then the exported variables, then the arguments, in every form of sbatch."""
    header = ["#SBATCH --time=02:00:00 -p a # note", "#SBATCH --gres=gpu:1"]
    site = SiteOptions({"SBATCH_PARTITION": "b"}, {"SBATCH_QOS": "no"})
    found = values_of_all(
        *(header, site),
        ["-t", "5", "--account", "lab", "-qlong", "-N2", "--mem=3G", "--gpus-per-t=1"],
    )
    assert found == {
        "time": "5",
        "partition": "b",
        "account": "lab",
        "qos": "long",
        "gres": "gpu:1",
        "nodes": "2",
        "mem": "3G",
        "gpus-per-task": "1",
    }
    assert asked_tres(found) == {"node": 2, "mem": 6144, "gres/gpu": 2}
    assert asked_tres({"mem": "2048K"})["mem"] == asked_tres({"mem": "2"})["mem"] == 2  # MB
    assert asked_tres({"nodes": "0"})["node"] == 1  # sbatch refuses it
    assert asked_tres({"gpus-per-node": "a100:2"}) == {
        "node": 1,
        "gres/gpu": 2,
        "gres/gpu:a100": 2,
    }


def test_gpus_without_a_number_are_one_of_each_node() -> None:
    """As sbatch reads `--gres=gpu`."""
    assert asked_tres({"gres": "gpu", "nodes": "3"}) == {"node": 3, "gres/gpu": 3}


@pytest.mark.parametrize(
    ("text", "mb"), [("512", 512), ("2048K", 2), ("3M", 3), ("1G", 1024), ("2T", 2_097_152)]
)
def test_memory_is_read_in_every_unit(text: str, mb: float) -> None:
    """In a site's limit and in a job's own request."""
    (qos,) = parse_quotas("qos", f"a|||mem={text}").values()
    assert qos.tres == {"mem": mb}
    assert asked_tres({"mem": text})["mem"] == mb


@pytest.mark.parametrize("gres", ["lscratch:50,gpu:t4:2", "gpu:t4:2,lscratch:50"])
def test_gpus_are_counted_beside_what_else_a_node_has(gres: str) -> None:
    """Local scratch is a gres too."""
    assert asked_tres({"gres": gres}) == {"node": 1, "gres/gpu": 2, "gres/gpu:t4": 2}
    assert asked_tres({"gres": "lscratch:50"}) == {"node": 1, "gres/gpu": 0}


def test_a_line_of_squeue_that_is_no_job_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older ones print the cluster's name, where SLURM_CLUSTERS is set."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    write_program(tmp_path / "scontrol", "echo 'AccountingStorageEnforce = limits'")
    write_program(tmp_path / "sacctmgr", "exit 1")
    write_program(tmp_path / "squeue", "echo 'CLUSTER: x'; echo 'lab|normal|gpu'")
    assert read_limits().own_jobs == (("lab", "normal", "gpu"),)


@pytest.mark.parametrize("words", [[], ["--test"]])
def test_a_job_that_is_too_long_is_refused_before_anything_is_written(
    harness: Harness, words: list[str]
) -> None:
    """Slurm would take it, and let it wait for ever."""
    harness.program("sbatch", "echo 77")
    harness.program("scontrol", "echo 'PartitionName=gpu Default=YES MaxTime=00:01:00'")
    done = harness.run_here("submit", JOBS / "lstm.toml", "--time", "2", *words)
    assert done.returncode == 2
    assert "--time 2: partition gpu allows 00:01:00 at most" in done.stderr.splitlines()[-1]
    assert not harness.runs.exists()


@pytest.mark.parametrize("words", [[], ["--test"]])
def test_the_comparison_is_held_to_the_limits_too(harness: Harness, words: list[str]) -> None:
    """Its time is its own, and it counts as a job."""
    harness.program("sbatch", "echo 77")
    harness.program("scontrol", "echo 'PartitionName=gpu Default=YES MaxTime=00:15:00'")
    done = harness.run_here("submit", "--all", "--time", "10", *words)
    said = "the comparison: --time 00:30:00: partition gpu allows 00:15:00 at most"
    assert (done.returncode, said in done.stderr.splitlines()[-1]) == (2, True), done.stderr
    done = harness.run_here("submit", "--all", "--test", "--", "--time=10")
    assert "partition gpu allows" not in done.stderr
    harness.program("scontrol", "echo 'AccountingStorageEnforce = limits'")
    user = "case $* in *user=*format=Acc*) echo 'lab|5' ;; *Default*t) echo lab ;; esac"
    harness.program("sacctmgr", user)
    harness.program("squeue", "")
    done = harness.run_here("submit", "--all", *words)
    said = "6 jobs: account lab allows 5 of one user at a time"
    assert (done.returncode, said in done.stderr.splitlines()[-1]) == (2, True), done.stderr
    assert not harness.runs.exists()


def test_a_dry_run_splits_seeds_as_the_submission_does(harness: Harness) -> None:
    """By the site's own array size."""
    words = ["submit", JOBS / "lstm.toml", "--seeds", "1234,2024", "--dry-run"]
    harness.program("scontrol", "exit 1")
    assert "--array=1-2 " in harness.run_here(*words).stdout
    harness.program("scontrol", "echo 'MaxArraySize = 4000001'")
    assert "--array=1234,2024 " in harness.run_here(*words).stdout
    assert not harness.runs.exists()


def test_a_slurm_that_is_too_old_is_refused_before_anything_is_written(harness: Harness) -> None:
    """Otherwise the job would fail, after its wait in the queue."""
    harness.program("sbatch", "echo slurm 20.02.7")
    done = harness.run_here("submit", JOBS / "lstm.toml")
    assert (done.returncode, "is too old" in done.stderr.splitlines()[-1]) == (2, True)
    assert not harness.runs.exists()


def test_each_task_of_an_array_is_a_job_and_packed_seeds_are_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the limits of a site count them."""
    counted: list[int] = []
    monkeypatch.setattr(submit, "check_limits", lambda _, num, __: counted.append(num))
    planned: Any = [
        SimpleNamespace(seeds=(1, 2, 3), is_array=True, limited={}),
        SimpleNamespace(seeds=(1, 2), is_array=False, limited={}),
    ]
    submit._check_limits(planned, Limits())
    assert counted == [4, 4]
