"""Runs told apart by the settings of their jobs."""

from pathlib import Path

from harness.report.collect import group_runs, scored_runs
from tests.made_up_runs import write_run


def test_each_option_is_a_setting(tmp_path: Path) -> None:
    """A run is named by one alone."""
    for width in (3, 5):
        toml = f"[model]\nunits = 4\noptions = {{ width = {width}, kernel = 5 }}\n"
        write_run(tmp_path / str(width), toml)
    runs, _ = scored_runs([tmp_path])
    ((group,), _) = group_runs(runs)
    assert [*group.runs] == ["lstm", "lstm width=5"]


def test_an_ensemble_keeps_the_options_of_its_runs_as_settings(tmp_path: Path) -> None:
    """By their whole keys."""
    write_run(tmp_path / "a")
    (tmp_path / "a/ensemble.toml").write_text('[settings.model]\n"options.width" = 3\n')
    (run,) = scored_runs([tmp_path])[0]
    assert run.settings == {"model.options.width": 3}


def test_a_whole_number_is_a_number_and_true_is_none(tmp_path: Path) -> None:
    """Runs of 0 and 0.0 are of one job; those of 1 and true have two names."""
    for name, toml in (
        ("a", "[train]\noptimizer_options = { weight_decay = 0 }\n"),
        ("b", "[train]\noptimizer_options = { weight_decay = 0.0 }\n"),
        ("c", "[model]\noptions = { flag = 1 }\n"),
        ("d", "[model]\noptions = { flag = true }\n"),
    ):
        write_run(tmp_path / name, toml)
    ((group,), repeated) = group_runs(scored_runs([tmp_path])[0])
    assert [left.folder.name for left in repeated] == ["b"]
    names = {name: [run.folder.name for run in runs] for name, runs in group.runs.items()}
    assert names == {
        "lstm": ["a"],
        "lstm weight_decay=unset flag=1": ["c"],
        "lstm weight_decay=unset flag=True": ["d"],
    }


def test_pretrained_vectors_are_told_apart_by_their_content(tmp_path: Path) -> None:
    """Two files of one name are two jobs, and one file in two places is one."""
    for name, path, checksum in (
        ("a", "/a/v.txt", "1" * 64),
        ("b", "/b/v.txt", "1" * 64),
        ("c", "/a/v.txt", "2" * 64),
    ):
        toml = f"[model]\nembeddings = '{path}'\n"
        write_run(tmp_path / name, toml, embeddings_checksum=checksum)
    ((group,), repeated) = group_runs(scored_runs([tmp_path])[0])
    assert [left.folder.name for left in repeated] == ["b"]
    names = {name: [run.folder.name for run in runs] for name, runs in group.runs.items()}
    assert names == {
        "lstm": ["a"],
        "lstm embeddings=22222222": ["c"],
    }
