"""The table of a comparison: which runs share a row, and which are left out with a reason."""

import errno
import hashlib
import json
import math
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from harness.data.dataset import OFFICIAL
from harness.errors import InputError
from harness.job.job_file import load_job
from harness.report.collect import DEFAULTS, DatasetGroup, LeftOut, group_runs, scored_runs
from harness.report.summary import Part
from harness.tracking.audits import keep_audit
from harness.tracking.run_dir import stamped
from tests.conftest import JOBS, Harness, failing
from tests.made_up_runs import write_run

EPOCHS = "[train]\nseed = {}\nepochs = {}\n"


def rows_of(part: Part) -> list[dict[str, str]]:
    """Return the rows of a table as text."""
    rows: list[dict[str, str]] = part.cells.to_dict("records")
    return rows


def seeds_of(group: DatasetGroup) -> dict[str, list[int]]:
    """Return the seeds of each row of the table."""
    return {name: [run.seed for run in runs] for name, runs in group.runs.items()}


def seeds_in(folder: Path) -> dict[str, list[int]]:
    """Return the seeds of each row; the runs in the folder must make up a single table."""
    ((group,), _) = group_runs(scored_runs([folder])[0])
    return seeds_of(group)


def test_mean_deviation_and_interval_are_students(tmp_path: Path) -> None:
    """Five seeds give the textbook's mean, deviation and 95 % interval."""
    for seed, accuracy in enumerate((0.86, 0.87, 0.88, 0.89, 0.90), 1):
        write_run(tmp_path / str(seed), seed=seed, accuracy=accuracy, training_s=10.0 * seed)
    runs, left_out = scored_runs([tmp_path, tmp_path / "1"])  # a run named twice counts once
    assert left_out == []
    ((group,), repeated) = group_runs(runs)
    assert (seeds_of(group), repeated) == ({"lstm": [1, 2, 3, 4, 5]}, [])
    (cells,) = rows_of(Part(group))
    # s = sqrt(2.5), t(0.975, 4) = 2.776: half the interval is 2.776 s / sqrt 5 = 1.963.
    assert [cells[name] for name in ("recurrent", "seeds", "test %", "s.d.", "train s")] == [
        *("8,320", "5", "88.00", "1.58", "30.0")
    ]
    assert (cells["95 % interval"], cells["book %"]) == ("86.04 to 89.96", "87.05")
    assert "F1" not in cells  # these results contain no F1


def test_audited_runs_are_marked(tmp_path: Path) -> None:
    """The mark names the depths of the audits; a run that changed after its audits has none."""
    runs, mine = tmp_path / "runs", tmp_path / "mine"
    for seed, depths in enumerate((["quick", "full"], ["full"], ["full"], []), 1):
        write_run(runs / str(seed), seed=seed)
        checksum, of_job = (
            hashlib.sha256((runs / str(seed) / name).read_bytes()).hexdigest()
            for name in ("result.json", "job.toml")
        )
        for depth in depths:
            outcome = "differs" if seed == 3 else "equal"
            audit = {"depth": depth, "outcome": outcome, "job_sha256": of_job}
            keep_audit(mine, checksum, audit)

    def marks() -> str:
        return rows_of(Part(group_runs(scored_runs([runs], mine)[0])[0][0]))[0].get("audits", "")

    assert marks() == "full, quick: 1; full: 1; differs: 1"
    path = runs / "2" / "result.json"
    path.write_text(path.read_text().replace("0.87", "0.99"))
    assert marks() == "full, quick: 1; differs: 1"
    for seed in range(1, 5):  # all jobs change, so all runs stay in one row
        (runs / str(seed) / "job.toml").write_text("[model]\nunits = 4096\n")
    assert marks() == ""
    for seed in range(1, 5):
        (runs / str(seed) / "job.toml").write_text("")
    assert marks() == "full, quick: 1; differs: 1"
    (mine / ".audits").chmod(0o777)  # other users could have written the audits
    assert marks() == ""


@pytest.mark.parametrize(("second", "interval"), [(0.6, (math.nan, math.nan)), (0.9, (0.0, 1.0))])
def test_intervals_of_two_seeds(
    tmp_path: Path, second: float, interval: tuple[float, float]
) -> None:
    """Equal accuracies show no spread and have no interval; no interval exceeds 0 to 1."""
    for seed, accuracy in enumerate((0.6, second), 1):
        write_run(tmp_path / str(seed), seed=seed, accuracy=accuracy)
    (row,) = group_runs(scored_runs([tmp_path])[0])[0][0].jobs.to_dict("records")
    ends = (row["interval_low"], row["interval_high"])
    assert ends == pytest.approx(interval, abs=0, nan_ok=True)


def test_a_mean_needs_the_score_of_each_seed(tmp_path: Path) -> None:
    """The mean over other seeds could seem better than it is."""
    for seed in (1, 2):
        scores: dict[str, Any] = {"f1": 0.8} if seed == 1 else {}
        write_run(tmp_path / str(seed), seed=seed, roc_auc=0.9, **scores)
    (row,) = group_runs(scored_runs([tmp_path])[0])[0][0].jobs.to_dict("records")
    assert (math.isnan(row["f1"]), row["roc_auc"]) == (True, pytest.approx(0.9))


def test_groups_have_the_same_data_and_rows_the_same_settings(tmp_path: Path) -> None:
    """Checksum and limit decide the group; the name of a row contains its unusual settings."""
    write_run(tmp_path / "a", EPOCHS.format(1, 3))
    write_run(tmp_path / "b", EPOCHS.format(1, 3), dataset_checksum="b", is_sample=True)
    write_run(tmp_path / "c", EPOCHS.format(2, 4), seed=2)
    write_run(tmp_path / "d", EPOCHS.format(3, 4), seed=3)
    write_run(tmp_path / "e", "[train]\nseed = 4\n", seed=4)
    write_run(tmp_path / "f", EPOCHS.format(1, 3), limit=500)
    write_run(tmp_path / "g", dataset_checksum="g", data="IMDB")
    groups, _ = group_runs(scored_runs([tmp_path])[0])
    names = seeds_of(groups[0])
    assert names == {"lstm": [2, 3], "lstm epochs=3": [1], "lstm epochs=6": [4]}
    parts = [*map(Part, groups)]
    # The book's figure is only for the whole of IMDB.
    assert [(p.group.checksum, p.group.limit, rows_of(p)[0].get("book %")) for p in parts] == [
        *((OFFICIAL, 0, "87.05"), ("g", 0, None), (OFFICIAL, 500, None), ("b", 0, None))
    ]
    assert parts[2].heading == "IMDB, the first 500 reviews of each split"


VECTORS = "[model]\nembeddings = '/{}/v.txt'\n"
DECAY = "[train]\noptimizer_options = {{ weight_decay = {} }}\n"
OPTION = "[model]\noptions = {{ width = {}, kernel = 5 }}\n"
CODE = "[code]\n'net.py' = 'import {}'"
TRIAL = "/runs/gru/sweep/trials/{}/{}/seed1"


@pytest.mark.parametrize(
    ("key", "values", "names"),
    [
        ("toml", [CODE.format("keras"), CODE.format("numpy")], ["", " net.py=d8fca9de"]),
        ("toml", [OPTION.format(3), OPTION.format(5)], ["", " width=5"]),
        ("toml", [OPTION.format(1), OPTION.format("true")], ["", " width=True"]),
        ("toml", [DECAY.format(0), DECAY.format(0.0), ""], ["", "", " weight_decay=unset"]),
        ("weights_of", [None, "/runs/gru/6"], ["", " from=gru"]),
        (
            "weights_of",
            [TRIAL.format(3, 1), TRIAL.format(3, 2), TRIAL.format(6, 1)],
            ["", "", " from=gru/sweep/trials/6"],
        ),
    ],
)
def test_rows_are_named_by_what_differs(
    tmp_path: Path, key: str, values: list[Any], names: list[str]
) -> None:
    """The name shows a digest of custom code. True differs from 1, but 0 equals 0.0.

    A run that began with other weights was trained for longer; a trial's attempt does not matter.
    """
    for seed, value in enumerate(values):
        write_run(tmp_path / str(seed), **{key: value}, seed=seed)
    assert seeds_in(tmp_path) == {
        f"lstm{name}": [seed for seed, each in enumerate(names) if each == name] for name in names
    }


def test_settings_of_an_ensemble(tmp_path: Path) -> None:
    """`ensemble.toml` holds the settings; a key that it lacks has its default."""
    write_run(tmp_path / "a")
    toml = '[settings]\n"model.options.width" = 3\n"code.net.py" = "1a2b3c4d"\n'
    (tmp_path / "a/ensemble.toml").write_text(toml)
    (run,) = scored_runs([tmp_path])[0]
    assert run.settings == DEFAULTS | {"model.options.width": 3, "code.net.py": "1a2b3c4d"}


def test_pretrained_vectors_are_named_by_their_content(tmp_path: Path) -> None:
    """The path of the vectors' file does not matter."""
    for name, path, checksum in (("a", "a", "1"), ("b", "b", "1"), ("c", "a", "2")):
        write_run(tmp_path / name, VECTORS.format(path), embeddings_checksum=checksum * 64)
    assert [*seeds_in(tmp_path)] == ["lstm", "lstm embeddings=22222222"]


def test_runs_from_before_a_key_existed_have_its_default(tmp_path: Path) -> None:
    """The old runs share a row with runs that record the default."""
    toml = load_job(JOBS / "lstm.toml").to_toml()
    earlier = tomllib.loads(toml)
    del earlier["data"]["bucket"], earlier["model"]["recurrent"]
    write_run(tmp_path / "a", toml, seed=1)
    write_run(tmp_path / "b", tomli_w.dumps(earlier), seed=2)
    earlier["data"]["bucket"] = True
    write_run(tmp_path / "c", tomli_w.dumps(earlier), seed=3)
    assert seeds_in(tmp_path) == {"lstm": [1, 2], "lstm bucket=True": [3]}


def test_a_folder_that_can_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other folders are still compared; a pattern that matches a file ignores the file."""
    for name in ("gru", "lstm"):
        write_run(tmp_path / name / "a", job=name)
    (tmp_path / "notes.txt").touch()
    monkeypatch.setattr("os.scandir", failing(os.scandir, str(tmp_path / "gru"), errno.ESTALE))
    left = LeftOut(tmp_path / "gru", "unreadable", f"can't be read: {os.strerror(errno.ESTALE)}")
    for named, jobs in ((tmp_path, ["lstm"]), (tmp_path / "*", ["lstm"]), (tmp_path / "gru", [])):
        runs, left_out = scored_runs([named])
        assert ([run.job for run in runs], left_out) == (jobs, [left])


def test_runs_that_are_left_out_have_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may be failed, unfinished, broken, unreadable or untested; a pattern may match no run.

    The trials of a search are only counted; its retrained winner is a run.
    """
    write_run(tmp_path / "good")
    for name in ("trials/0", "trials/1", "winner/tune_best/seed1"):
        write_run(tmp_path / "sweep" / name, seed=7)
    (tmp_path / "sweep/search.toml").touch()
    write_run(tmp_path / "stale")
    stale = tmp_path / "stale/result.json"
    monkeypatch.setattr("os.open", failing(os.open, stale, errno.ESTALE))
    for name, state in (
        ("failed", {"phase": "failed", "error": "RunError: two\nlines, the \x1b[31mlast"}),
        ("training", {"phase": "training", "epoch": 3}),
        ("broken", {}),
        ("copied", {}),
        ("empty", {}),
        ("lost", {"phase": "finished", "epoch": 3}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.toml").write_text("")
        (tmp_path / name / "state.json").write_text(json.dumps(state))
    (tmp_path / "broken" / "result.json").write_text('{"accuracy": "high"}')
    (tmp_path / "copied" / "job.toml").unlink()
    write_run(tmp_path / "untested", "[data]\ntest = false", accuracy=None)
    runs, left_out = scored_runs([tmp_path, tmp_path / "none*"])
    assert [run.folder.name for run in runs] == ["good", "seed1"]
    assert {each.folder.name: (each.kind, each.why) for each in left_out} == {
        "failed": ("failed", "lines, the [31mlast"),
        "training": ("unfinished", "training in epoch 3"),
        "broken": ("broken", "result.json is broken; remove this file and run harness resume"),
        "empty": ("unfinished", "not begun"),
        "lost": ("broken", "result.json is missing; run harness resume"),
        "copied": ("broken", "job.toml is missing; copy the whole folder of the run"),
        "untested": ("not tested", "data.test = false"),
        "none*": ("unmatched", "no run matches this pattern"),
        "sweep": ("search", "the 2 trials of this search have no test scores"),
        "stale": (
            "unreadable",
            f"{stale}: can't be read: {os.strerror(errno.ESTALE)}; try again later",
        ),
    }


def test_a_run_that_ends_while_it_is_read_is_not_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result may appear at any moment, and users would remove a result that seems broken."""
    write_run(tmp_path / "a")
    later = (tmp_path / "a/result.json").rename(tmp_path / "later")
    end = "harness.report.collect.RunDirectory.certain_json"
    monkeypatch.setattr(end, lambda run, name: later.rename(run.path(name)) and {"accuracy": 1})
    assert [each.kind for each in scored_runs([tmp_path])[1]] == ["unfinished"]


def test_of_repeated_runs_the_first_counts(tmp_path: Path) -> None:
    """Only the run that began first counts, whatever its name. An unknown start time comes last.

    Otherwise repeated runs could narrow the interval or raise the mean.
    """
    began = {
        "20260102-101500": "2026-01-02T10:15:00+0100",
        "20260103-101500": "no time",
        "slurm-7": "2026-01-02T10:00:00+0100",
        "slurm-8": "2026-01-02T09:30:00+0000",  # 10:30 in the time zone of the other runs
    }
    for name, at in began.items():
        write_run(tmp_path / name, accuracy=0.9 if name == "slurm-7" else 0.8)
        record = stamped({"starts": [{"at": at}]})
        (tmp_path / name / "provenance.json").write_text(json.dumps(record))
    write_run(tmp_path / "c", seed=2, accuracy=0.87)
    ((group,), repeated) = group_runs(scored_runs([tmp_path])[0])
    assert group.by_seed["accuracy"].to_dict() == {("lstm", 1): 0.9, ("lstm", 2): 0.87}
    assert [each.folder.name for each in repeated] == [
        *("20260102-101500", "slurm-8", "20260103-101500")
    ]
    assert repeated[0].why.endswith("/slurm-7 has accuracy 90.00%, this run has 80.00%")


def test_patterns_are_expanded_and_typos_refused(tmp_path: Path) -> None:
    """A folder without runs is refused, too."""
    for name in ("slurm-1_1", "slurm-1_2", "slurm-2_1"):
        write_run(tmp_path / "lstm" / name, seed=int(name[-1]))
    runs, _ = scored_runs([tmp_path / "*" / "slurm-1_*"])
    assert [run.folder.name for run in runs] == ["slurm-1_1", "slurm-1_2"]
    with pytest.raises(InputError, match="is not a folder"):
        scored_runs([tmp_path / "nope"])
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="contains no run"):
        scored_runs([tmp_path / "bare"])


@pytest.mark.parametrize(
    ("words", "err"), [([], subprocess.STDOUT), (["--markdown"], subprocess.PIPE)]
)
def test_the_report_is_written_even_if_no_one_reads_the_table(
    harness: Harness, words: list[str], err: int
) -> None:
    """The program that reads the output, such as `head`, may have ended; this is no failure."""
    write_run(harness.runs / "lstm/a")
    reader, writer = os.pipe()
    os.close(reader)
    command = harness.command("compare", harness.runs, "--baseline=none", "--out", "out", *words)
    environment, folder = harness.environment, harness.folder
    done = subprocess.run(
        command, stdout=writer, stderr=err, env=environment, cwd=folder, check=False
    )
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert done.stderr is None or done.stderr.endswith(b"report       out/report.html\n")
    assert (harness.folder / "out/report.html").is_file()


def test_unfinished_runs_alone_are_refused(harness: Harness) -> None:
    """No report is written, so standard error lists all runs."""
    for number in range(25):
        (harness.runs / f"lstm/{number}").mkdir(parents=True)
        (harness.runs / f"lstm/{number}/job.toml").write_text("")
    done = harness.run_here("compare", "--out", harness.folder / "out")
    assert done.returncode == 2
    *lines, last = done.stderr.splitlines()
    assert [line.split(" (")[1] for line in lines] == 25 * ["unfinished: not begun)"]
    assert last.startswith("harness: nothing to compare: 25 folders found")
    assert not (harness.folder / "out").exists()


@pytest.mark.full
def test_the_command_reports_on_a_finished_run(finished: tuple[Harness, Path]) -> None:
    """The command prints a table with the baselines, and writes the report."""
    harness, run = finished
    out = harness.folder / "out"
    done = harness.run_here("compare", run, "--markdown", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"report       {out}/report.html\n"
    assert any(line.startswith("| bilstm | ") for line in done.stdout.splitlines())
    assert "| tf-idf, last 30 | " in done.stdout
    page = (out / "report.html").read_text()
    assert "A sample, not the full data." in page
    shown = harness.run("compare", "--baseline", "ngrams", "--out", out).stdout
    assert shown == harness.run_here("compare").stdout  # default: all runs in HARNESS_RUNS
    assert "tf-idf, whole" in shown
    for name in ("report.html", "comparison.md"):
        assert "McNemar" in (out / name).read_text()
    for name in ("comparison.csv", "comparison.tex"):
        assert "n-grams, whole" in (out / name).read_text()
