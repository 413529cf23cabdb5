"""Compiled steps: kept between processes, same bytes, and nothing that others or chance wrote."""

import os
from pathlib import Path

import pytest

from harness.compute import xla_cache as compiled
from harness.compute.xla_cache import FLAGS, compiled_steps, is_offered
from harness.job import Job
from harness.job_file import load_job
from tests.conftest import JOBS, Harness
from tests.training.kills import wait_for_step

RNN = load_job(JOBS / "rnn.toml")
ENTRY = b"code" * 1000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache of the test's own; returns the folder of the entries."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(FLAGS, raising=False)
    return tmp_path / "harness" / "xla"


def own_folder() -> Path:
    """Where TensorFlow is told to look."""
    (word,) = [w for w in os.environ[FLAGS].split() if "persistent_cache_directory" in w]
    return Path(word.partition("=")[2])


def offered(job: Job = RNN, threads: int = 2) -> dict[str, bytes]:
    """What TensorFlow would find for a job."""
    with compiled_steps(job, threads):
        return {path.name: path.read_bytes() for path in own_folder().iterdir()}


def compile_one(job: Job = RNN) -> None:
    """What TensorFlow does: it writes an entry, and has a half-written one when it is killed."""
    with compiled_steps(job, 2):
        (own_folder() / "a.pb").write_bytes(ENTRY)
        (own_folder() / "b.pb123.tmp").write_bytes(ENTRY[:10])


def test_what_was_compiled_is_offered_to_the_next_process(cache: Path) -> None:
    """Whole entries alone, to nobody else; the process's own folder is gone afterwards."""
    assert offered() == {}
    compile_one()
    with compiled_steps(RNN, 2):
        assert is_offered()
        folder = own_folder()
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()
    assert not os.environ[FLAGS]
    assert cache.stat().st_mode & 0o777 == 0o700
    assert offered() == {"a.pb": ENTRY}
    assert offered(load_job(JOBS / "rnn.toml", ["train.seed=7"])) == {"a.pb": ENTRY}
    for others in ("train.compile_evaluation=true", "train.block_lstm=true"):
        assert offered(load_job(JOBS / "rnn.toml", [others])) == {}  # other functions are compiled


@pytest.mark.parametrize("damage", [lambda entry: entry[:-1], lambda entry: b"x" + entry[1:]])
def test_a_damaged_entry_is_not_offered(cache: Path, damage: object) -> None:
    """TensorFlow would raise at the first step, or run what stands there."""
    compile_one()
    (path,) = cache.iterdir()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert offered() == {}
    compile_one()  # is compiled anew, and mended
    assert offered() == {"a.pb": ENTRY}


def test_another_job_or_number_of_threads_or_compiler_or_processor_is_offered_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code for another processor may stop the process."""
    compile_one()
    assert offered(load_job(JOBS / "rnn.toml", ["train.batch_size=64"])) == {}
    assert offered(threads=1) == {}
    with monkeypatch.context() as patched:
        patched.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        assert offered() == {}
    with monkeypatch.context() as patched:
        patched.setattr(compiled, "processor_features", lambda: "fpu avx512f")
        assert offered() == {}
    assert offered() == {"a.pb": ENTRY}


def test_a_folder_that_others_can_write_is_left_alone(cache: Path) -> None:
    """An entry is machine code; then TensorFlow compiles as it would anyway."""
    compile_one()
    cache.chmod(0o770)
    with compiled_steps(RNN, 2):
        assert not is_offered()
        assert not os.environ.get(FLAGS)
    cache.chmod(0o700)
    assert offered() == {"a.pb": ENTRY}


def test_a_cache_of_the_users_own_making_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sets TensorFlow's own option has it."""
    flags = "--tf_xla_persistent_cache_directory=/elsewhere"
    monkeypatch.setenv(FLAGS, flags)
    with compiled_steps(RNN, 2):
        assert os.environ[FLAGS] == flags


@pytest.mark.parametrize("place", ["a file in its way", "no space"])
def test_without_a_place_nothing_is_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A full disk would end a run at its first step otherwise."""
    if place == "no space":
        monkeypatch.setattr(compiled, "NEEDED_BYTES", 1e18)
    else:
        cache.parent.write_text("")
    with compiled_steps(RNN, 2):
        assert not is_offered()
        assert not os.environ.get(FLAGS)


def test_the_entries_used_last_stay(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search compiles hundreds."""
    monkeypatch.setattr(compiled, "MAX_ENTRIES", 3)
    jobs = [load_job(JOBS / "rnn.toml", [f"model.units={units}"]) for units in range(1, 6)]
    for job in jobs[:3]:
        compile_one(job)
        for path in cache.iterdir():  # time goes by
            os.utime(path, (path.stat().st_mtime - 10,) * 2)
    assert offered(jobs[0])
    compile_one(jobs[3])
    assert [bool(offered(job)) for job in jobs[:4]] == [True, False, True, True]


@pytest.mark.full
def test_a_run_that_finds_its_step_compiled_ends_with_the_same_bytes(
    harness: Harness, cache: Path
) -> None:
    """A killed one too, whose graph is traced after its checkpoint was read. TensorFlow itself says
    that it loads the entry; nothing else is said on standard error.
    """
    harness.environment["XDG_CACHE_HOME"] = str(cache.parent.parent)
    words = ["train", JOBS / "notebook" / "rnn.toml", "--set", "data.limit=300"]
    words += ["--set", "data.maxlen=30", "--set", "train.epochs=30"]
    words += ["--set", "train.checkpoint_every_s=0.05"]
    first = harness.run(*words, "--run-id", "first")
    assert first.returncode == 0, first.stderr
    assert len(list(cache.iterdir())) == 1
    killed = harness.start(*words, "--run-id", "second")
    wait_for_step(killed, harness.runs / "notebook_rnn" / "second", 1)
    killed.kill()
    out, _ = killed.communicate()
    assert "model  " not in out, "it ended before it was killed"
    second = harness.run(*words, "--run-id", "second")
    assert second.stderr == first.stderr
    harness.environment["TF_CPP_MIN_LOG_LEVEL"] = "0"
    harness.environment["TF_CPP_VMODULE"] = "device_executable_persistor=1"
    assert "Loading cached entry" in harness.run(*words, "--run-id", "third").stderr
    assert len(list(cache.iterdir())) == 1
    runs = harness.runs / "notebook_rnn"
    for name in ("model.keras", "predictions.npz"):
        bytes_of = [(runs / run / name).read_bytes() for run in ("first", "second", "third")]
        assert bytes_of[0] == bytes_of[1] == bytes_of[2]


@pytest.mark.full
def test_a_user_is_told_nothing_of_the_steps_that_are_loaded(harness: Harness, cache: Path) -> None:
    """One for each length, in training and in evaluations, and where a run goes on: TensorFlow says
    of each, as an error, that it could end by SIGILL.
    """
    harness.environment["XDG_CACHE_HOME"] = str(cache.parent.parent)
    words = ["train", JOBS / "notebook" / "rnn.toml", "--set", "data.limit=300"]
    words += ["--set", "data.bucket=true", "--set", "train.epochs=2", "--set", "train.xla=on"]
    words += ["--set", "train.compile_evaluation=true", "--set", "train.batch_size=32"]
    words += ["--set", "train.checkpoint_every_s=0.05"]
    first = harness.run(*words, "--run-id", "first")
    assert first.returncode == 0, first.stderr
    assert len(list(cache.iterdir())) > 3  # one for each length
    killed = harness.start(*words, "--run-id", "second")
    wait_for_step(killed, harness.runs / "notebook_rnn" / "second", 5)  # of 8 in an epoch
    killed.kill()
    killed.communicate()
    assert harness.run(*words, "--run-id", "second").stderr == first.stderr
