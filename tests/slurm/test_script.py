"""`submit` turns jobs, seeds and resources into job scripts and sbatch commands."""

import dataclasses
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.job.job_file import load_job
from harness.job.search import load_search
from harness.slurm.resources import (
    Resources,
    array_spec,
    compose,
    parse_seeds,
    refused_options,
    short_limit,
)
from harness.slurm.script import (
    Request,
    SbatchJob,
    Wanted,
    arrays_of,
    comparison_submission,
    job_submission,
    read_header,
)
from tests.conftest import JOBS

# Seeds and resources


def test_seeds_are_numbers_and_ranges() -> None:
    """Seeds are sorted; 10,000 are permitted. Successive seeds become a range of `--array`."""
    found = [parse_seeds(text) for text in ("2", "1-3", "7,1,3", "1-2, 3", "0")]
    assert found == [(2,), (1, 2, 3), (1, 3, 7), (1, 2, 3), (0,)]
    assert {len(parse_seeds(text)) for text in ("1-10000", "1-9999,20000")} == {10_000}
    assert array_spec((1, 2, 3, 7, 9, 10)) == "1-3,7,9-10"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "numbers and ranges") for text in ("", ",", "a", "1-", "-1", "1..3")),
        ("2,5-3", "a range should begin with its smaller number: 3-5"),
        *((text, "10,000 seeds at most") for text in ("1-10001", "1-9999,20000-30000")),
        *((text, "contains seed [124] twice") for text in ("1,1", "1-3,2", "4,1-5")),
    ],
)
def test_wrong_seeds_are_refused(text: str, message: str) -> None:
    """A repeated seed is refused, because it is probably a typing error."""
    with pytest.raises(InputError, match=f"--seeds {text}: .*{message}"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("resources", "named"),
    [
        *((Resources(gpus=text), f"--gpus {text}") for text in ("-1", "65", "a100", "2:a100", "")),
        (Resources(gpus="2", flags=("--gpus-per-node=4",)), "--gpus-per-node"),
        (Resources(flags=("lstm.sh",)), "lstm.sh"),
        (Resources(flags=("--hold", "jobs/gru.toml")), "jobs/gru.toml"),
        *((Resources(flags=(flag,)), flag) for flag in ("--array=1-2", "-a1-2", "-o", "-Jname")),
        *((Resources(flags=(flag,)), repr(flag)) for flag in ("--account=a\x1b[2J", "--qos=a;b")),
        *((Resources(flags=(flag,)), f"{flag}: can't") for flag in ("--wait", "--wrap=true")),
    ],
)
def test_wrong_requests_are_refused(resources: Resources, named: str) -> None:
    """A wrong number of GPUs is refused, and so are options that `submit` does not allow."""
    with pytest.raises(InputError, match=re.escape(named)):
        resources.check()


def test_requests_become_options() -> None:
    """The user's own sbatch options come last."""
    flags = ("-C", "a100", "--mem=4G", "--wait-all-nodes=1")
    resources = Resources(gpus="a100:64", nodes=2, time="30", mem="4G", flags=flags)
    resources.check()
    assert resources.sbatch_args() == ["--nodes=2", "--time=30", "--mem=4G", *flags]
    assert Resources().sbatch_args() == []


def test_a_time_limit_below_five_minutes_is_short() -> None:
    """0 and None mean that there is no limit."""
    assert [bool(short_limit(each)) for each in (None, 0, 300, 299, 60)] == [
        *(False, False, False, True, True),
    ]
    assert "requeued after only 0 s, because Slurm warns the job 90 s before" in short_limit(60)


# Conflicts of options

HEADER = ["--gres=gpu:1", "--mem=16G", "-p", "main", "--time=5"]


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (["--gpus-per-node=2"], HEADER[1:]),
        (["--gpus-per-node", "2"], HEADER[1:]),
        (["-G2"], HEADER[1:]),
        (["--mem-per-gpu=4G"], [HEADER[0], *HEADER[2:]]),
        (["--partition=b"], [*HEADER[:2], HEADER[4]]),
        (["--mem-bind=local", "-C", "gpu"], HEADER),
    ],
)
def test_an_option_replaces_others_for_the_same_resource(
    args: list[str], options: list[str]
) -> None:
    """The script's option is removed; sbatch alone would keep both options."""
    assert compose(HEADER, args, environment={}) == [*options, *args]


@pytest.mark.parametrize(
    ("site", "gpus", "args"),
    [
        ({}, "2", ["--gres=gpu:2"]),
        ({}, "1g.10gb:1", ["--gres=gpu:1g.10gb:1"]),
        ({}, "0", ["--gres=none"]),
        ({"SBATCH_GRES": "lscratch:50,gpu:t4:1"}, "2", ["--gres=gpu:t4:2"]),
        ({"SBATCH_GRES": "gpu:t4:1"}, "a100:2", ["--gres=gpu:a100:2"]),
        ({"SBATCH_GRES": "gpu:1g.10gb"}, "2", ["--gres=gpu:1g.10gb:2"]),
        ({"SBATCH_GRES": "gpu:1"}, "2", ["--gres=gpu:2"]),
        ({"SBATCH_GRES": "none"}, "2", ["--gres=gpu:2"]),
        ({"SBATCH_GRES": "none", "SBATCH_GPUS_PER_NODE": "t4:1"}, "2", ["--gpus-per-node=t4:2"]),
        ({"SBATCH_GPUS": "1"}, "2", ["--gres=gpu:2"]),
        ({"SBATCH_MEM_PER_GPU": "8G"}, "0", ["--gres=none"]),
        ({"SBATCH_GPUS": "1"}, None, ["--gpus=1"]),
    ],
)
def test_gpus_are_requested_in_the_sites_way(
    site: dict[str, str], gpus: str | None, args: list[str]
) -> None:
    """The site's variables choose option and type. Neither they nor the script's --gres remain."""
    composed = compose(HEADER, [], gpus=gpus, environment={**site, "OTHER": "1"})
    assert composed == [*HEADER[1:], *args]


def test_the_type_of_gpu_in_the_header_is_kept() -> None:
    """A user may have edited the script's `#SBATCH --gres=gpu:1`."""
    for gpus, args in (("2", ["--gres=gpu:t4:2"]), ("a100:2", ["--gres=gpu:a100:2"])):
        assert compose(["--gres=gpu:t4:1"], [], gpus=gpus, environment={}) == args


@pytest.mark.parametrize("name", ["gres", "--gres"])
def test_rules_of_a_site(name: str) -> None:
    """An option that the site refuses is never sent; options that it demands are added."""
    site = {"SBATCH_GRES": "gpu:a100:1", "SBATCH_QOS": "q", "HARNESS_SBATCH_ALWAYS": "-n1"}
    site["HARNESS_SBATCH_NEVER"] = f"{name} mem"
    composed = compose(HEADER, ["--mem=4G", "--time=9"], gpus="0", environment=site)
    assert composed == ["-p", "main", "--qos=q", "-n1", "--time=9"]
    composed = compose(HEADER, ["--nodes=2"], environment=site)
    assert composed[-3:] == ["-n1", "--ntasks=2", "--nodes=2"]  # sbatch obeys the last number
    with pytest.raises(InputError, match="--gres: is refused by this site"):
        compose(HEADER, [], gpus="2", environment=site)
    with pytest.raises(InputError, match="'gres,mem' should be the long name"):
        refused_options({"HARNESS_SBATCH_NEVER": "gres,mem"})


# The script


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """A project with two scripts; the path of its runs contains a space and a percent sign."""
    (tmp_path / "slurm").mkdir()
    # A comment in a script need not be UTF-8; sbatch reads only the script's header.
    header = "#!/bin/bash\n#SBATCH --job-name={0}\n# caf\udce9\n\n#SBATCH --mem=16G  # big\n"
    for name in ("lstm", "compare"):
        text = header.format(name) + "true\n#SBATCH --too=late\n"
        (tmp_path / f"slurm/{name}.sh").write_text(text, errors="surrogateescape")
    runs = Path("/my runs/100%")
    snapshot = runs / ".submissions/code-0"
    for name, value in {"VENV": "/venv", "DATA": "/it's data", "TRUST_CODE": "1"}.items():
        monkeypatch.setenv(f"HARNESS_{name}", value)
    return Request(tmp_path, runs, home=snapshot)


def submission(request_: Request, *seeds: int, pack: bool = False, **asked: object) -> SbatchJob:
    resources = Resources(**asked)  # type: ignore[arg-type]
    wanted = Wanted(load_job(JOBS / "lstm.toml"), resources, seeds or None, pack)
    return job_submission(wanted, request_)


def with_jobs(request_: Request, resources: Resources) -> Request:
    wanted = Wanted(load_job(JOBS / "lstm.toml"), resources)
    return dataclasses.replace(request_, jobs=(wanted,))


def untimed(text: str) -> str:
    return re.sub(r"\d{8}-\d{6}-\d{6}", "TIME", text)


def test_script_of_one_run(request_: Request) -> None:
    """The script exports the user's settings; the command names the log and the script."""
    job = submission(request_, 3, nodes=1)
    for line in (
        "export HARNESS_HOME='/my runs/100%/.submissions/code-0'",
        "export HARNESS_SNAPSHOT=1",
        "export HARNESS_DATA='/it'\"'\"'s data'",
        "export HARNESS_TRUST_CODE=1",
        "supervise train '/my runs/100%/.submissions/TIME-lstm/lstm.toml' --seed 3",
    ):
        assert f"{line}\n" in untimed(job.script)
    assert untimed(shlex.join(job.command)) == (
        "sbatch --parsable --job-name=lstm '--output=/my runs/100%%/logs/%x-%j.out' --mem=16G "
        "--nodes=1 '/my runs/100%/.submissions/TIME-lstm/job.sh'"
    )
    assert job.run_folders("12") == [Path("/my runs/100%/lstm/slurm-12")]
    assert job.logs("12") == [Path("/my runs/100%/logs/lstm-12.out")]
    (request_.project / "slurm/rnn.sh").write_text("#SBATCH --comment='a\n")
    for name, reason in (("gru", "No such file"), ("rnn", "No closing quotation")):
        with pytest.raises(InputError, match=rf"slurm/{name}\.sh: can't be read \({reason}"):
            read_header(request_.project, name)


@pytest.mark.parametrize("array_size", [0, 1, 3])
def test_more_seeds_than_an_array_holds_get_several(request_: Request, array_size: int) -> None:
    """`--pack` needs no array. MaxArraySize is 0 if a site forbids arrays: each seed gets a job.

    Indices are below MaxArraySize. For larger seeds, task n gets the n-th seed of a list.
    """
    narrow = dataclasses.replace(request_, array_size=array_size)
    job = load_job(JOBS / "lstm.toml")
    wanted = Wanted(job, Resources(), (2, 3, 4), at_most="%1")
    parts = [job_submission(each, narrow) for each in arrays_of(wanted, array_size)]
    assert [each.seeds for each in parts] == (
        [(2, 3), (4,)] if array_size > 2 else [(2,), (3,), (4,)]
    )
    arrays = [arg for each in parts for arg in each.args if arg.startswith("--array")]
    assert arrays == (["--array=1-2%1"] if array_size > 2 else [])
    assert ("export HARNESS_ARRAY_SEEDS='2 3'\n" in parts[0].script) == (array_size > 2)
    packed = dataclasses.replace(wanted, pack=True)
    assert list(arrays_of(packed, array_size)) == [packed]


def test_packed_seeds_are_one_job(request_: Request) -> None:
    """Each seed has its own run and log."""
    job = submission(request_, 1, 2, 7, pack=True)
    assert job.script.splitlines()[-1].endswith("lstm.toml' --seeds 1-2,7")
    assert not any(word.startswith("--array") for word in job.command)
    assert job.run_folders("12")[2] == Path("/my runs/100%/lstm/slurm-12-seed7")
    assert job.logs("12")[2] == Path("/my runs/100%/logs/lstm-slurm-12-seed7.out")
    comparison = comparison_submission({"12": job}, with_jobs(request_, Resources()))
    assert "slurm-12-seed*" in comparison.script


def test_without_seeds_the_job_keeps_its_own(request_: Request) -> None:
    """A job named `job` becomes job_.toml, because job.toml marks the folder of a run."""
    job = load_job(JOBS / "lstm.toml", ["train.seed=9"]).model_copy(update={"name": "job"})
    sent = job_submission(Wanted(job, Resources()), request_)
    assert (sent.seeds, sent.indices) == ((9,), ())
    assert "--seed" not in sent.script
    assert "seed = 9\n" in sent.job_toml
    assert sent.job_file
    assert sent.job_file.name == "job_.toml"


def test_the_next_job_of_a_search_does_not_undo_a_cancellation(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that replaces a forbidden requeue joins the search; a person's job resumes it."""
    (request_.project / "slurm/tune.sh").touch()
    search, sweep = load_search(JOBS / "tune_lstm.toml"), Path("/runs/tune_lstm/slurm-7")
    wanted = Wanted(search, Resources(), resumes=sweep)
    resumes = f"\nsupervise resume sweep {sweep}\n"
    assert job_submission(wanted, request_).script.endswith(resumes)
    monkeypatch.setenv("HARNESS_FIRST_JOB", "7")
    assert job_submission(wanted, request_).script.endswith(f"\nsupervise tune --join {sweep}\n")


def test_comparison_waits_for_all_trainings(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison gets patterns that match the runs, and does not inherit --gres and --mem."""
    monkeypatch.setenv("SBATCH_GPUS_PER_NODE", "1")
    monkeypatch.setenv("SBATCH_QOS", "q")
    at = dataclasses.replace(request_, runs=tmp_path / "r [1]*")
    asked = Resources(mem="9G", time="9", flags=("--gres", "gpu:3", "-C", "ib"))
    array = submission(at, 1, 2, **vars(asked))
    single = submission(at, **vars(asked))
    unset = ["env", "-uSBATCH_GPUS_PER_NODE", "-uSBATCH_QOS", "sbatch"]
    assert single.command[:4] == unset
    assert "--mem=16G" not in single.args
    comparison = comparison_submission({"12": array, "13": single}, with_jobs(at, asked))
    assert comparison.command[:4] == unset
    options = ("--mem=16G", "--qos=q", "-C", "ib", "--dependency=afterany:12:13")
    assert comparison.args == options
    patterns = shlex.split(comparison.script.splitlines()[-1])[1:]
    runs = [*array.run_folders("12"), *single.run_folders("13")]
    assert runs[1] == at.runs / "lstm/slurm-12_2"
    for folder in [*runs, at.runs / "lstm/slurm-123_1", tmp_path / "r 1x/lstm/slurm-12_1"]:
        folder.mkdir(parents=True)
    expand = 'for pattern; do compgen -G "$pattern"; done'
    found = subprocess.run(["bash", "-c", expand, "-", *patterns], capture_output=True, text=True)
    assert sorted(found.stdout.splitlines()) == sorted(map(str, runs))
    logs = [at.runs / "logs/compare-14.out"]
    assert (comparison.run_folders("14"), comparison.logs("14")) == ([], logs)
