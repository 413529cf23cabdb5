"""What a site allows, as Slurm's programs word it, and what is refused by it."""

import dataclasses

import pytest

from harness.errors import InputError
from harness.slurm.limits import (
    Limits,
    Partition,
    Quota,
    check_limits,
    parse_partitions,
    parse_quotas,
    parse_settings,
    seconds,
)
from harness.slurm.sbatch_options import SiteOptions, values_of_all

PARTITIONS = """\
PartitionName=gpu Default=YES GraceTime=0 MaxTime=1-00:00:00 PreemptMode=OFF Nodes=n10
PartitionName=short Default=NO GraceTime=10 MaxTime=00:01:00 PreemptMode=CANCEL
PartitionName=open MaxTime=UNLIMITED
"""
LIMITS = Limits(
    parse_partitions(PARTITIONS),
    qos={"normal": Quota("qos normal", "02:00:00", 3)},
    accounts={
        "lab": Quota("account lab", "", 5),
        "shared": Quota("account shared", qos="normal"),
    },
)


def test_what_slurm_says_is_read() -> None:
    """Partitions, settings with their units, and quotas with limits left out."""
    assert LIMITS.partitions[1] == Partition("short", False, "00:01:00", "CANCEL", 10.0)
    assert [each.is_default for each in LIMITS.partitions] == [True, False, False]
    settings = parse_settings("Configuration data\nMaxArraySize     = 100\nKillWait = 2 sec\n")
    assert settings == {"MaxArraySize": "100", "KillWait": "2 sec"}
    assert (Limits(settings=settings).array_size, Limits().array_size) == (100, 1001)
    assert parse_quotas("qos", "a|1-00:00:00|7\nb||\n") == {
        "a": Quota("qos a", "1-00:00:00", 7),
        "b": Quota("qos b", "", None),
    }
    assert parse_quotas("account", "a||||long\nb|||short|long,short\nc||||x,y\n") == {
        "a": Quota("account a", "", None, "long"),
        "b": Quota("account b", "", None, "short"),
        "c": Quota("account c", "", None, ""),
    }


@pytest.mark.parametrize(
    ("text", "time_s"),
    [
        *(("30", 1800), ("30:10", 1810), ("2:00:00", 7200), ("1-12", 129_600)),
        *(("1-12:30", 131_400), ("1-00:00:05", 86_405), ("UNLIMITED", float("inf"))),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(text: str, time_s: float) -> None:
    """A number alone is minutes."""
    assert seconds(text) == time_s


@pytest.mark.parametrize(
    ("options", "num_jobs", "said"),
    [
        ({"time": "02:00:00", "partition": "short"}, 1, "short allows 00:01:00.*gpu, open"),
        ({"time": "2-0"}, 1, "partition gpu allows 1-00:00:00.*--partition: open"),
        ({"time": "3:00:00", "qos": "normal"}, 1, "qos normal allows 02:00:00"),
        ({"qos": "normal"}, 4, "4 jobs: qos normal allows 3 of one user"),
        ({"account": "lab"}, 6, "6 jobs: account lab allows 5"),
        ({"time": "3:00:00", "account": "shared"}, 1, "qos normal allows 02:00:00"),
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
    check_limits({"time": "9-0"}, 9000, Limits())
    check_limits({}, 9000, LIMITS)
    lab = dataclasses.replace(LIMITS, default_account="lab")
    with pytest.raises(InputError, match="account lab allows 5"):
        check_limits({}, 6, lab)


def test_a_later_layer_wins() -> None:
    """The script, then the exported variables, then the arguments, in every form of sbatch."""
    header = ["#SBATCH --time=02:00:00 -p a # note", "#SBATCH --gres=gpu:1"]
    site = SiteOptions({"SBATCH_PARTITION": "b"}, {"SBATCH_QOS": "no"})
    found = values_of_all(header, site, ["-t", "5", "--account", "lab", "-qlong"])
    assert found == {"time": "5", "partition": "b", "account": "lab", "qos": "long"}
