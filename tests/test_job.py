"""Job files are read, or refused in one line."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.job.job_file import data_settings, load_job
from harness.job.search import load_search
from harness.tracking.run_dir import run_identity
from tests.conftest import JOBS

LEAST = "[model]\narchitecture = 'lstm'\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "epochs"), [("rnn", 10), ("lstm", 5), ("gru", 4), ("bilstm", 4), ("stacked_lstm", 4)]
)
def test_notebook_jobs_are_the_exercises(name: str, epochs: int) -> None:
    """The job in `jobs/` has the same network, but its GRU is the variant that cuDNN supports."""
    job = load_job(JOBS / "notebook" / f"{name}.toml")
    assert (job.model.architecture, job.train.epochs) == (name, epochs)
    assert job.model.dropout == (0.5 if name == "stacked_lstm" else 0.4)
    assert (job.model.units, job.model.embedding_dim, job.model.spatial_dropout) == (32, 32, 0.4)
    assert not job.model.reset_after
    assert (job.data.vocab_size, job.data.maxlen, job.data.validation_split) == (8000, 200, 0.2)
    assert (job.train.batch_size, job.train.optimizer) == (128, "rmsprop")
    assert (job.train.learning_rate, job.train.ema_momentum, job.train.keep) == (0.001, 0, "last")
    steady = load_job(JOBS / f"{name}.toml")
    assert steady.model == job.model.model_copy(update={"reset_after": name == "gru"})
    assert (steady.train.ema_momentum > 0, steady.train.keep) == (True, "best")


def test_a_job_with_all_defaults_reads_back_as_itself(tmp_path: Path) -> None:
    """The file of a run has every default and gives the same job."""
    job = load_job(write(tmp_path, LEAST), ["train.epochs=9"], seed=5)
    (tmp_path / "again").mkdir()
    again = load_job(write(tmp_path / "again", job.to_toml()))
    assert again == job
    assert (again.name, again.train.epochs, again.train.seed) == ("mine", 9, 5)
    keys = set(type(job.train).model_fields) - {"optimizer_options"}  # an empty table
    assert set(tomllib.loads(job.to_toml())["train"]) == keys


def test_an_identity_has_the_settings_that_change_a_result(tmp_path: Path) -> None:
    """The identity omits defaults, so that a run can resume after a later version adds a key."""
    path = write(tmp_path, LEAST)
    job = load_job(path)
    assert job.identity() == '{"code": {}, "model.architecture": "lstm", "name": "mine"}'
    for setting in ("train.checkpoint_every_s=9", "data.source=texts.csv", "data.delimiter=;"):
        assert load_job(path, [setting]).identity() == job.identity()
    for setting in ("train.tf32=true", "data.bucket=true", "train.xla=off", "train.seed=2"):
        changed = load_job(path, [setting])
        assert run_identity(changed, "checksum") != run_identity(job, "checksum")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ("model.architecture is missing",)),
        ("x", ("is not TOML",)),
        (b"\xff", ("is not TOML: 'utf-8' codec can't decode byte 0xff",)),
        ("model = 3", ("model = 3", "[model]")),
        (LEAST + "unit = 3", ("model.unit ", "model.units?")),
        ("[modle]\narchitecture = 'lstm'", ("modle is not", "did you mean model? (and 1 more)")),
        ("epochs = 2\n" + LEAST, ("epochs", "train.epochs?")),
        ("[model]\narchitecture = 'lstn'", ("'lstn'", "did you mean lstm?")),
        (LEAST + "[train]\nepochs = 0", ("train.epochs = 0", "greater than or equal to 1")),
        (LEAST + "[train]\nepochs = true", ("train.epochs = true", "integer")),
        (LEAST + "[train]\nlearning_rate = nan", ("train.learning_rate = nan", "finite")),
        (LEAST + "[data]\nvalidation_split = 0", ("train.keep", "validation_split")),
        (LEAST + "[data]\nlimit = 1", ("data.limit = 1",)),
        (LEAST + "ngram_ratios = 4", ("model.ngram_ratios = 4", "less than or equal to 3")),
        (LEAST + "recurrent = false", ("model.recurrent = false", "model.pooling is 'last'")),
    ],
)
def test_a_bad_job_file_is_refused_in_one_line(
    tmp_path: Path, text: str | bytes, said: tuple[str, ...]
) -> None:
    """The line names the file, the key, the value, the rule and the nearest valid name."""
    path = write(tmp_path, text)
    pattern = ".*".join(map(re.escape, ("", f"job {path}: ", *said, "")))
    with pytest.raises(InputError, match=f"^{pattern}$"):
        load_job(path)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.epoch=3"], "--set train.epoch=3: .* did you mean train.epochs?"),
        (["epochs=3"], r"--set epochs=3: is not table.key=value; did you mean train.epochs\?"),
        (["name=x"], "--set name=x: is not table.key=value, such as train.epochs=8"),
        (["data.test=no"], "--set data.test=no: should be true or false"),
        (["train.epochs=many"], "--set train.epochs=many: should be an integer"),
        (["train.learning_rate=0,001"], "should be a number, such as 0.001"),
        (["train.schedule_drops=1"], r"schedule_drops=1: should be a list, such as \[1, 2.5\]"),
        (["data.text_column=1"], "should be a string in quotes"),
        (["data.source=/gr\udcfcn.csv"], "should be UTF-8; in a path, each folder"),
        (["train.monitor=accuracy"], "did you mean val_accuracy?"),
        (["train.optimizer_options=3"], "should be a table"),
        (["train.class_weights=even"], "balanced"),
        (["train.class_weights={ a = -1 }"], "a table of weights of 0 to 1,000,000"),
        (["train.callbacks=['mine']"], "package.module:function"),
        (["train.callbacks=['nope.py:f']"], "nope.py: can't be read: No such file"),
        (["train.epochs=8\ndata.limit=2"], "integer"),
        (["train.optimizer_options.momentun=1"], "no option momentun; did you mean momentum?"),
        (["train.optimizer_options.beta_1=1"], "for rmsprop, a job has no option beta_1"),
        (["train.optimizer_options.momentum=much"], "momentum should be of type float"),
        (["train.optimizer_options.centered=1"], "centered should be of type bool"),
        (["train.steps_per_execution=101"], "should be less than or equal to 100"),
        (["train.schedule=steps"], "needs train.schedule_drops"),
        (["train.schedule=steps", "train.schedule_drops=[3, 1]"], "in strictly increasing order"),
        (["train.schedule=cosine", "train.warmup_epochs=6"], "should be below the 6 epochs"),
        (["data.validation_split=0", "train.keep=val_f1"], "train.keep = 'val_f1': needs"),
        (
            ["model.train_embeddings=false", "train.adversarial=5"],
            "train.adversarial = 5.*train_embeddings = true",
        ),
        (["model.architecture=a.py:net", "model.ngram_ratios=3"], "model.ngram_ratios = 3: "),
        (["train.optimizer=muon", "train.precision=float64"], "float64': .*muon"),
    ],
)
def test_a_bad_override_is_refused_in_one_line(
    tmp_path: Path, overrides: list[str], said: str
) -> None:
    """The line names the option, or the key and the value, and the rule."""
    with pytest.raises(InputError, match=said) as refusal:
        load_job(write(tmp_path, LEAST), overrides)
    assert "\n" not in str(refusal.value).replace(overrides[0], "")


def test_the_refusal_of_a_missing_job_names_the_nearest_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name without folder and ending suffices. A folder is refused as a job file."""
    write(tmp_path, LEAST)
    monkeypatch.chdir(JOBS.parent)
    for path, said in (
        ("lstm", r"job lstm: no such file; did you mean jobs/lstm\.toml\?"),
        ("quite another", r"no such file; name a job such as jobs/lstm\.toml$"),
        (tmp_path / "mien.toml", r"no such file; did you mean .*mine\.toml\?"),
        (tmp_path, "is not a plain file"),
    ):
        with pytest.raises(InputError, match=said):
            load_job(Path(path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"did you mean {JOBS / 'lstm.toml'}\\?"):
        load_job(Path("jobs/lstm.toml"))


def test_a_file_name_that_is_no_job_name_is_refused(tmp_path: Path) -> None:
    """The remedies are a key `name` and another file name; a printed command quotes the path."""
    path = write(tmp_path, LEAST).rename(tmp_path / "a b.toml")
    with pytest.raises(InputError, match=r"name = 'a b': .*; set name in the file, or rename the"):
        load_job(path)
    with pytest.raises(InputError, match=f"train it with: harness train '{path}'$"):
        load_search(path)
    path.write_text(f"{LEAST}[search]\ntrials = 2\n")
    with pytest.raises(InputError, match=f"run the search with: harness tune '{path}'$"):
        load_job(path)


def test_bare_words_and_toml_values_override(tmp_path: Path) -> None:
    """--set takes bare words, numbers and quoted strings. A delimiter may be a tab or a space."""
    sets = ["model.architecture=gru", "train.learning_rate=1e-4", "train.keep='last'"]
    job = load_job(write(tmp_path, LEAST), sets)
    found = job.model.architecture, job.train.learning_rate, job.train.keep
    assert found == ("gru", 1e-4, "last")
    for text in ("\t", r"\t", r"'\t'", r'"\t"'):  # as messages and shells write a tab
        assert data_settings([f"data.delimiter={text}"]).delimiter == "\t"
    assert data_settings(["data.delimiter=' '"]).delimiter == " "


def test_settings_without_effect_are_named(tmp_path: Path) -> None:
    """A line says which other setting each of them needs."""
    path = write(tmp_path, LEAST)
    for overrides, said in (
        ("", ""),
        ("train.reduce_lr_factor=0.1 train.reduce_lr_patience=1", ""),
        (
            "model.reset_after=true",
            "model.reset_after has no effect without model.architecture = gru",
        ),
        (
            "train.keep=val_f1 train.monitor=val_f1",
            "train.monitor has no effect without train.keep = best or "
            "train.early_stopping_patience or train.reduce_lr_patience",
        ),
        ("data.delimiter=;", "data.delimiter has no effect without data.source"),
    ):
        assert "".join(load_job(path, overrides.split()).without_effect()) == said
    own = load_job(JOBS / "own" / "conv_gru.toml", ["model.reset_after=true"])
    assert not list(own.without_effect()), "it may read the key"
    search = load_search(JOBS / "tune_best.toml")
    assert not list(search.without_effect()), "the search varies model.architecture"
    (line,) = replace(search, space=()).without_effect()
    assert "model.reset_after" in line
