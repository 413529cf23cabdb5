"""What `submit` asks of Slurm, as text: seeds, resources, scripts and commands."""

import dataclasses
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.job.job_file import load_job
from harness.slurm.resources import Resources, Rules, array_spec, compose, parse_seeds, site_options
from harness.slurm.script import (
    Layout,
    Wanted,
    comparison_submission,
    job_submission,
    job_variables,
    read_header,
)
from tests.conftest import JOBS

# What is asked for


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("2", (2,)), ("1-3", (1, 2, 3)), ("7,1,3", (1, 3, 7)), ("1-2, 3", (1, 2, 3)), ("0", (0,))],
)
def test_seeds_are_numbers_and_ranges(text: str, seeds: tuple[int, ...]) -> None:
    """A list of seeds is read in order, each once."""
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text", ["", ",", "a", "3-1", "1-", "-1", "1..3", "1-10001", "1-9999,20000-30000"]
)
def test_seeds_that_are_none_are_refused(text: str) -> None:
    """What is no list of at most ten thousand seeds is refused by its name."""
    with pytest.raises(InputError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(("text", "seed"), [("1,1", 1), ("1-3,2", 2), ("4,1-5", 4)])
def test_a_seed_that_stands_there_twice_is_refused(text: str, seed: int) -> None:
    """Who types it means another one."""
    with pytest.raises(InputError, match=f"--seeds {text}: names seed {seed} twice"):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["1-10000", "1-9999,20000"])
def test_ten_thousand_seeds_are_taken(text: str) -> None:
    """The most that the refusal of more names."""
    assert len(parse_seeds(text)) == 10_000


def test_neighbouring_seeds_make_a_range() -> None:
    """An array is written as short as Slurm takes it."""
    assert array_spec((1, 2, 3, 7, 9, 10)) == "1-3,7,9-10"


REFUSED: list[tuple[Resources, str]] = [
    *((Resources(gpus=text), f"--gpus {text}") for text in ("-1", "65", "a100", "2:a100", "")),
    (Resources(gpus="2", flags=("--gpus-per-node=4",)), "--gpus-per-node"),
    (Resources(flags=("lstm.sh",)), "lstm.sh"),
    (Resources(flags=("-C", "a100", "lstm.sh")), "lstm.sh"),
    *((Resources(flags=(flag,)), flag) for flag in ("--array=1-2", "-a1-2", "-o", "--outp=x")),
    *((Resources(flags=(flag,)), flag) for flag in ("--wait", "--wrap=true", "-Jname")),
]


@pytest.mark.parametrize(("resources", "named"), REFUSED)
def test_what_sbatch_could_not_take_is_refused(resources: Resources, named: str) -> None:
    """A value out of range or a flag that submit sets itself is refused by its name."""
    with pytest.raises(InputError, match=re.escape(named)):
        resources.check()


def test_the_end_of_a_range_is_taken() -> None:
    """The refusal of the next number calls it allowed."""
    Resources(gpus="a100:64").check()


def test_resources_become_flags() -> None:
    """Each becomes sbatch's flag, sbatch's own stand last, and what is not given says nothing."""
    flags = ("-C", "a100", "--mem=4G", "--wait-all-nodes=1")
    resources = Resources(gpus="a100:2", nodes=2, time="30", mem="4G", flags=flags)
    resources.check()
    assert resources.sbatch_args() == ["--nodes=2", "--time=30", "--mem=4G", *flags]
    assert Resources().sbatch_args() == []


# What replaces what

HEADER = ["#SBATCH --gres=gpu:1", "#SBATCH --mem=16G -p main  # a note", "#SBATCH --time=5"]


@pytest.mark.parametrize(
    ("args", "header"),
    [
        (["--gpus-per-node=2"], HEADER[1:]),
        (["--gpus-per-node", "2"], HEADER[1:]),
        (["-G2"], HEADER[1:]),
        (["--mem-per-gpu=4G"], [HEADER[0], "#SBATCH -p main", HEADER[2]]),
        (["--mem-bind=local", "-C", "gpu"], HEADER),
    ],
)
def test_an_option_replaces_other_ways_to_ask_for_the_same(
    args: list[str], header: list[str]
) -> None:
    """What asks for GPUs or memory drops the script's own request, whatever its form."""
    composed = compose(HEADER, {}, args)
    assert (composed.header, composed.args, composed.unset) == (header, args, [])


@pytest.mark.parametrize(
    ("site", "gpus", "args"),
    [
        ({}, "2", ["--gres=gpu:2"]),
        ({}, "a100:2", ["--gres=gpu:a100:2"]),
        ({}, "1g.10gb:1", ["--gres=gpu:1g.10gb:1"]),
        ({}, "0", ["--gres=none"]),
        ({"SBATCH_GRES": "gpu:t4:1"}, "2", ["--gres=gpu:t4:2"]),
        ({"SBATCH_GRES": "gpu:t4:1"}, "a100:2", ["--gres=gpu:a100:2"]),
        ({"SBATCH_GRES": "none"}, "2", ["--gres=gpu:2"]),
        ({"SBATCH_GRES": "none", "SBATCH_GPUS_PER_NODE": "t4:1"}, "2", ["--gpus-per-node=t4:2"]),
        ({"SBATCH_GPUS": "1"}, "2", ["--gres=gpu:2"]),
        ({"SBATCH_GRES": "lscratch:50,gpu:t4:1"}, "2", ["--gres=gpu:t4:2"]),
    ],
)
def test_gpus_are_asked_for_in_the_sites_way(
    site: dict[str, str], gpus: str, args: list[str]
) -> None:
    """Option and type are those of the site's own request; the script's request is dropped."""
    composed = compose(HEADER, site, [], gpus=gpus)
    assert (composed.args, composed.header) == (args, HEADER[1:])
    # A variable that stayed would ask a second time.
    assert composed.unset == list(site)


def test_the_sites_options_are_those_of_the_environment() -> None:
    """sbatch reads them itself; they replace the script's own."""
    site = site_options({"SBATCH_PARTITION": "b", "SBATCH_ACCOUNT": "my lab", "OTHER": "1"})
    composed = compose(HEADER, site, ["--qos=q"])
    assert (composed.args, composed.unset) == (["--qos=q"], [])
    assert site_options({}) == {}


def test_a_site_may_name_its_way_in_two_variables() -> None:
    """As slurm/README.md writes it."""
    site = site_options({"SBATCH_GRES": "none", "SBATCH_GPUS_PER_NODE": "a100:1"})
    composed = compose(HEADER, site, [], gpus="2")
    assert composed.args == ["--gpus-per-node=a100:2"]
    assert {*composed.unset} == {"SBATCH_GRES", "SBATCH_GPUS_PER_NODE"}


def test_what_sbatch_must_not_see_is_taken_from_its_environment(tmp_path: Path) -> None:
    """The command says so; the comparison asks neither for GPUs nor for the trainings' memory."""
    site = {"SBATCH_GPUS_PER_NODE": "1", "SBATCH_QOS": "q"}
    at = dataclasses.replace(layout(tmp_path), site=site)
    asked = Resources(mem="9G", flags=("--gres", "gpu:3", "-C", "ib"))
    job = job_submission(Wanted(load_job(JOBS / "lstm.toml"), asked), at)
    assert job.command[:3] == ["env", "-uSBATCH_GPUS_PER_NODE", "sbatch"]
    assert "--mem=16G" not in job.script
    comparison = comparison_submission({"12": job}, asked, at)
    assert comparison.command[:3] == ["env", "-uSBATCH_GPUS_PER_NODE", "sbatch"]
    assert comparison.args[3:] == ("-C", "ib", "--dependency=afterany:12")
    assert "--mem=16G" in comparison.script


# The script

GOLDEN = """\
#!/usr/bin/env bash
#SBATCH --job-name=lstm
#SBATCH --mem=16G

# Written by harness submit: the code, the job and the runs as they were then.
export HARNESS_HOME='/my runs/100%/.submissions/code-0'
export HARNESS_SNAPSHOT=1
source "$HARNESS_HOME/slurm/common.sh"
# These replace what slurm/site.sh says; it alone knows the environment of a container.
[[ ${#HARNESS_CONTAINER[@]} != 0 ]] || export HARNESS_VENV=/venv
export HARNESS_RUNS='/my runs/100%'
export HARNESS_DATA='/it'"'"'s data'
supervise train '/my runs/100%/.submissions/TIME-lstm/lstm.toml' --seed 3
"""


def layout(tmp_path: Path) -> Layout:
    (tmp_path / "slurm").mkdir()
    header = "#!/bin/bash\n#SBATCH --job-name={0}\n# a comment\n\n#SBATCH --mem=16G\n"
    for name in ("lstm", "compare"):
        text = header.format(name) + "true\n#SBATCH --too=late\n"
        (tmp_path / f"slurm/{name}.sh").write_text(text)
    runs = Path("/my runs/100%")
    snapshot = runs / ".submissions/code-0"
    environment = {"HARNESS_VENV": "/venv", "HARNESS_DATA": "/it's data", "OTHER": "x"}
    return Layout(
        runs, snapshot, tmp_path, job_variables(tmp_path, snapshot, runs, environment=environment)
    )


def test_a_word_is_carried_as_it_is_and_a_folder_is_absolute(tmp_path: Path) -> None:
    """A job has no idea of the folder where it was submitted."""
    environment = {"HARNESS_TRUST_CODE": "1", "HARNESS_FIRST_JOB": "7", "HARNESS_DATA": "data"}
    found = job_variables(tmp_path, tmp_path, tmp_path, environment=environment)
    carried = {name: found[name] for name in environment}
    assert carried == {**environment, "HARNESS_DATA": str(Path("data").absolute())}


def untimed(text: str) -> str:
    return re.sub(r"\d{8}-\d{6}-\d{6}", "TIME", text)


def test_script_of_one_run(tmp_path: Path) -> None:
    """The whole text, with the header of the project's script as far as sbatch would read it."""
    job = load_job(JOBS / "lstm.toml")
    submission = job_submission(Wanted(job, Resources(nodes=1), (3,)), layout(tmp_path))
    assert untimed(submission.script) == GOLDEN
    assert untimed(shlex.join(submission.command)) == (
        "sbatch --parsable --job-name=lstm '--output=/my runs/100%%/logs/%x-%j.out' --nodes=1 "
        "'/my runs/100%/.submissions/TIME-lstm/job.sh'"
    )
    assert submission.run_folders("12") == [Path("/my runs/100%/lstm/slurm-12")]
    assert submission.logs("12") == [Path("/my runs/100%/logs/lstm-12.out")]


def test_several_seeds_are_an_array(tmp_path: Path) -> None:
    """An array's tasks have a run and a log each, and its script leaves the seed to the task."""
    job = load_job(JOBS / "lstm.toml")
    submission = job_submission(Wanted(job, Resources(gpus="2"), (1, 2, 7)), layout(tmp_path))
    assert untimed(submission.script.splitlines()[-1]).endswith("lstm.toml'")
    assert submission.command[3:6] == [
        *("--output=/my runs/100%%/logs/%x-%A_%a.out", "--array=1-2,7", "--gres=gpu:2"),
    ]
    assert submission.run_folders("12")[2] == Path("/my runs/100%/lstm/slurm-12_7")
    assert submission.logs("12")[2] == Path("/my runs/100%/logs/lstm-12_7.out")


def test_seeds_that_are_no_indices_are_listed(tmp_path: Path) -> None:
    """Slurm's indices end below MaxArraySize; the script then finds its seed by its place."""
    job = load_job(JOBS / "lstm.toml")
    at = layout(tmp_path)
    small = job_submission(Wanted(job, Resources(), (42, 99)), at)
    assert (small.args[3], "ARRAY_SEEDS" in small.script) == ("--array=42,99", False)
    large = job_submission(Wanted(job, Resources(), (42, 1234)), at)
    assert large.args[3] == "--array=1-2"
    assert "export HARNESS_ARRAY_SEEDS='42 1234'\n" in large.script
    assert large.run_folders("12")[1] == Path("/my runs/100%/lstm/slurm-12_2")
    assert large.seeds == (42, 1234)
    narrow = dataclasses.replace(at, array_size=100)
    assert "ARRAY_SEEDS" in job_submission(Wanted(job, Resources(), (1, 100)), narrow).script


@pytest.mark.parametrize("array_size", [0, 1, 3])
def test_more_seeds_than_an_array_holds_are_refused(tmp_path: Path, array_size: int) -> None:
    """With the remedy; packed ones are no array. MaxArraySize is 0 where a site wants none."""
    at = dataclasses.replace(layout(tmp_path), array_size=array_size)
    job = load_job(JOBS / "lstm.toml")
    assert job_submission(Wanted(job, Resources(), (3,)), at).indices == ()
    assert job_submission(Wanted(job, Resources(), (3, 4, 5), pack=True), at).indices == ()
    with pytest.raises(InputError, match=f"are 3, and MaxArraySize .* {array_size}, .* --pack"):
        job_submission(Wanted(job, Resources(), (3, 4, 5)), at)


def test_packed_seeds_are_one_job(tmp_path: Path) -> None:
    """Its script trains them side by side; each has its run and its own log."""
    job = load_job(JOBS / "lstm.toml")
    at = layout(tmp_path)
    submission = job_submission(Wanted(job, Resources(), (1, 2, 7), pack=True), at)
    assert submission.script.splitlines()[-1].endswith("lstm.toml' --seeds 1-2,7")
    assert not any(word.startswith("--array") for word in submission.command)
    assert submission.run_folders("12")[2] == Path("/my runs/100%/lstm/slurm-12-seed7")
    assert submission.logs("12")[2] == Path("/my runs/100%/logs/lstm-slurm-12-seed7.out")
    comparison = comparison_submission({"12": submission}, Resources(), at)
    assert "slurm-12-seed*" in comparison.script


def test_without_seeds_the_job_keeps_its_own(tmp_path: Path) -> None:
    """No seed is passed, and the record has the one that the job's file names."""
    job = load_job(JOBS / "lstm.toml", ["train.seed=9"])
    submission = job_submission(Wanted(job, Resources()), layout(tmp_path))
    assert (submission.seeds, submission.indices) == ((9,), ())
    assert "--seed" not in submission.script
    assert "seed = 9\n" in submission.job_toml


def test_a_job_named_job_leaves_that_files_name_to_runs(tmp_path: Path) -> None:
    """A file job.toml among the submissions would be taken for a run."""
    job = load_job(JOBS / "lstm.toml").model_copy(update={"name": "job"})
    submission = job_submission(Wanted(job, Resources()), layout(tmp_path))
    assert submission.job_file
    assert submission.job_file.name == "job_.toml"


def test_comparison_waits_for_all_and_names_their_runs(tmp_path: Path) -> None:
    """It starts after failed ones too, with patterns that bash expands to each job's runs."""
    at = dataclasses.replace(layout(tmp_path), runs=tmp_path / "r [1]*")
    job = load_job(JOBS / "lstm.toml")
    asked = Resources(gpus="2", time="9", flags=("--partition=p", "--qos=q"))
    array = job_submission(Wanted(job, asked, (1, 2)), at)
    single = job_submission(Wanted(job, asked), at)
    submission = comparison_submission({"12": array, "13": single}, asked, at)
    assert submission.command[4:-1] == [
        *("--partition=p", "--qos=q", "--dependency=afterany:12:13"),
    ]
    patterns = shlex.split(submission.script.splitlines()[-1])[1:]
    wanted = [*array.run_folders("12"), *single.run_folders("13")]
    for folder in [*wanted, at.runs / "lstm/slurm-123_1", tmp_path / "r 1x/lstm/slurm-12_1"]:
        folder.mkdir(parents=True)
    expand = 'for pattern; do compgen -G "$pattern"; done'
    found = subprocess.run(["bash", "-c", expand, "-", *patterns], capture_output=True, text=True)
    assert sorted(found.stdout.splitlines()) == sorted(map(str, wanted))
    assert (submission.run_folders("14"), submission.logs("14")) == (
        [],
        [at.runs / "logs/compare-14.out"],
    )


def test_a_header_that_is_gone_is_named(tmp_path: Path) -> None:
    """A missing script is refused in one line with its path; one in another encoding is read."""
    with pytest.raises(InputError, match=r"slurm/gru\.sh"):
        read_header(tmp_path, "gru")
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/gru.sh").write_bytes(b"#!/bin/bash\n# caf\xe9\n#SBATCH --time=5\n")
    assert read_header(tmp_path, "gru") == ["#SBATCH --time=5"]


@pytest.mark.parametrize("name", ["gres", "--gres"])
def test_what_a_site_refuses_is_never_sent(name: str) -> None:
    """Neither by the script nor the site's variables nor the user; what it wants comes first."""
    rules = Rules.of_site({"HARNESS_SBATCH_NEVER": f"{name} mem", "HARNESS_SBATCH_ALWAYS": "-n1"})
    site = site_options({"SBATCH_GRES": "gpu:a100:1", "SBATCH_QOS": "q"})
    composed = compose(HEADER, site, ["--mem=4G", "--time=5"], gpus="0", rules=rules)
    assert composed.args == ["-n1", "--time=5"]
    assert not [line for line in composed.header if "gres" in line or "--mem" in line]
    assert composed.unset == ["SBATCH_GRES"]
    with pytest.raises(InputError, match="--gres: is never sent at this site"):
        compose(HEADER, site, [], gpus="2", rules=rules)
    with pytest.raises(InputError, match="'n1' should be an option"):
        Rules.of_site({"HARNESS_SBATCH_ALWAYS": "-x n1"})
