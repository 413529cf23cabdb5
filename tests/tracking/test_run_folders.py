"""The one walk over the folders of runs."""

from pathlib import Path

from harness.tracking.run_dir import find_runs


def test_runs_are_found_once_and_those_of_sweeps_where_asked(tmp_path: Path) -> None:
    """By path, each once; what is inside of a run is no run, and a sweep's runs only on request."""
    sweep = "tune/s"
    for name, file in (
        ("lstm/b", "job.toml"),
        ("lstm/a", "lease.json"),
        ("lstm/a/inner", "job.toml"),
        ("lstm/.hidden", "job.toml"),
        ("bare", "notes.txt"),
        (sweep, "search.toml"),
        (sweep, "lease.json"),
        (f"{sweep}/trials/0", "job.toml"),
        (f"{sweep}/trials/1/2.7/seed1", "job.toml"),
        (f"{sweep}/winner/best/seed1", "job.toml"),
    ):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / file).write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "lstm" / "a")
    for folder in (tmp_path, tmp_path / "lstm", tmp_path / "lstm" / "b"):
        (folder / "loop").symlink_to("loop")  # can't be followed, as a colleague's closed folder

    def found(*tops: Path, in_sweeps: tuple[str, ...] = ()) -> list[str]:
        return [str(run.relative_to(tmp_path)) for run in find_runs(tops, in_sweeps)]

    assert found(tmp_path / "lstm", tmp_path / "lstm" / "a", tmp_path) == [
        *("lstm/a", "lstm/b", "tune/s")
    ]
    assert found(tmp_path / "tune", in_sweeps=("trials", "winner")) == [
        *("tune/s", "tune/s/trials/0", "tune/s/trials/1/2.7/seed1", "tune/s/winner/best/seed1")
    ]
    assert found(tmp_path / "tune", in_sweeps=("winner",))[1:] == ["tune/s/winner/best/seed1"]
    assert found(tmp_path / "gone") == []
