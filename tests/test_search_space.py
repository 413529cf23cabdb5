"""Job files of searches are read, or refused in one line, before TensorFlow is imported."""

from pathlib import Path

import pytest

from harness.errors import InputError
from harness.job.search import load_search
from tests.conftest import JOBS
from tests.tuning.made_up_sweep import HYPERBAND

SEARCHES = sorted(path.name for path in JOBS.glob("tune_*.toml"))

GOOD = """
[model]
architecture = "lstm"
[search]
tuner = "random"
trials = 4
[search.space]
model.units = [8, 16]
"""


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    path = tmp_path / "tune_it.toml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        load_search(path, overrides)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("name", SEARCHES)
def test_the_projects_searches_can_be_read(name: str, tmp_path: Path) -> None:
    """The file of a search has all defaults and gives the same search."""
    search = load_search(JOBS / name)
    assert len(search.space) >= 4
    kept = tmp_path / "search.toml"
    kept.write_text(search.to_toml())
    again = load_search(kept)
    assert not [*search.changes(again)]
    assert set(again.space) == set(search.space)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("model.units = []", "model.units = []: should list different values of one type"),
        ("train.learning_rate = { values = 0.1 }", "= 0.1: should list different values of one"),
        ("model.units = 8", "should be a list such as [32, 64], or a range"),
        ("model.units = [8, 8]", "different values of one type"),
        ("model.units = [0, 8]", "model.units = 0: should be greater than or equal to 1"),
        ("model.units = { min = 8 }", "model.units = {'min': 8}: a range needs numbers"),
        ("model.units = { min = 8, max = 8 }", "min below max"),
        ("model.units = { min = 8, max = 16, step = 9 }", "step should be above 0 and at most"),
        ("model.units = { min = 8, max = 16, stepp = 2 }", "units.stepp is unknown here; known: "),
        ("model.units = { min = 8.5, max = 16 }", "integers if model.units is an integer"),
        ("model.units = { values = [8], min = 8 }", "min is unknown here; known: values, when"),
        ("train.learning_rate = { min = 0.0, max = 1.0, log = true }", "a min above 0"),
        ("model.pooling = { min = 1, max = 2 }", "model.pooling = 1: should be"),
        ("model.pooling = ['lost']", "'lost': should be 'last', 'max', 'mean' or 'max+mean'"),
        ("model.unit = [8]", "model.unit is not a key of a job; did you mean model.units?"),
        ("modell.units = [8]", "search.space should contain only the tables model, data, train"),
        ("train.seed = [1, 2]", "search.executions"),
        ("data.limit = [10, 20]", "must have the same reviews"),
        ("model.dropout = { values = [0.1], when = { model.units = [8] } }", "[8]}}: should name"),
        (
            "model.units = [8]\nmodel.dropout = { values = [0], when = { model.units = [8, 9] } }",
            "{'units': [8, 9]}}: should name one key and some of its values",
        ),
        ("model.dropout = { values = [0.1], when = 3 }", "dropout.when = 3: should name one key"),
        ("", "search.space is empty; add a key"),
    ],
)
def test_a_bad_space_is_refused(tmp_path: Path, line: str, said: str) -> None:
    """The line names the key, the value and the rule."""
    assert said in refusal(tmp_path, GOOD.replace("model.units = [8, 16]", line))


def test_a_value_is_checked_together_with_its_condition(tmp_path: Path) -> None:
    """The value is checked with every value of the key in its condition."""
    space = """train.optimizer = ["adam", "sgd"]
train.optimizer_options.momentum = { values = [0.5, 0.9], when = { train.optimizer = [%s] } }
train.optimizer_options.beta_2 = { values = [0.9, 0.99], when = { train.optimizer = ["adam"] } }
"""
    path = tmp_path / "tune_good.toml"
    path.write_text(GOOD + space % '"sgd"')
    assert len(load_search(path).space) > 3
    said = refusal(tmp_path, GOOD + space % '"sgd", "adam"')
    assert "for adam, a job has no option momentum" in said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["search.tuner=gridd"], "'hyperband' or 'asha'; did you mean grid?"),
        (["search.objective=accuracy"], "did you mean val_accuracy?"),
        (["train.seed=2147483647", "search.executions=2"], "train.seed = 2147483648"),
        (["search.trials=0"], "the random tuner needs a number above 0, such as 20"),
        (["search.trails=4"], "a job has no key search.trails; did you mean search.trials?"),
        (["search.seed=0"], "--set search.seed=0: should be greater than or equal to 1"),
        (["search.factor=4"], "factor has no effect without search.tuner = hyperband or asha"),
        (["search.tuner=hyperband", "search.min_epochs=2"], "without search.tuner = asha; remove"),
        (
            ["search.tuner=asha", "search.min_epochs=3"],
            "train.epochs = 6: should be at least search.min_epochs times search.factor, 9",
        ),
        (["data.validation_split=0", "train.keep=last"], "a search needs validation reviews"),
        (["model.units=3"], "--set model.units=3: no key is left to search; remove a --set option"),
    ],
)
def test_bad_settings_of_a_search_are_refused(
    tmp_path: Path, overrides: list[str], said: str
) -> None:
    """The line names the key, the value and the rule."""
    assert said in refusal(tmp_path, GOOD, *overrides)


@pytest.mark.parametrize(
    ("line", "tuner", "said"),
    [
        ("train.learning_rate = { min = 0.1, max = 1.0 }", "grid", "learning_rate: the grid tuner"),
        ("train.epochs = [1, 2]", "hyperband", "train.epochs: the hyperband tuner chooses the"),
        ("train.epochs = [1, 2]", "asha", "train.epochs: the asha tuner chooses the number of"),
    ],
)
def test_a_space_that_does_not_fit_the_tuner_is_refused(
    tmp_path: Path, line: str, tuner: str, said: str
) -> None:
    """The grid tuner needs lists of values; hyperband and asha choose the epochs themselves."""
    assert said in refusal(tmp_path, f"{GOOD}{line}\n", f"search.tuner={tuner}")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.units=12", "model.units"),
        ("train.optimizer_options={rho=0.8}", "train.optimizer_options.rho"),
    ],
)
def test_an_override_replaces_the_search_of_a_key(tmp_path: Path, override: str, key: str) -> None:
    """A line says so. An override of a table of options overrides all its keys."""
    (tmp_path / "a.toml").write_text(f"{GOOD}train.optimizer_options.rho = [0.9, 0.8]\n")
    whole, search = (load_search(tmp_path / "a.toml", each) for each in ([], [override]))
    assert {each.key for each in whole.space} - {each.key for each in search.space} == {key}
    (line,) = search.fixed
    assert (
        line
        == f"--set {override}: all trials use this value; the search space of its key is ignored"
    )
    assert line in search.without_effect()
    (tmp_path / "b.toml").write_text(search.to_toml())
    assert load_search(tmp_path / "b.toml").space == search.space


@pytest.mark.parametrize(("network", "is_searched"), [("gru", False), ("stacked_lstm", True)])
def test_an_override_decides_a_condition(tmp_path: Path, network: str, is_searched: bool) -> None:
    """If `--set` decides a condition (`when`), all trials search the conditional key, or none."""
    (tmp_path / "a.toml").write_text(HYPERBAND)
    search = load_search(tmp_path / "a.toml", [f"model.architecture={network}"])
    found = {each.key: each.parent for each in search.space}
    assert found == {**({"model.second_units": None} if is_searched else {}), "model.dropout": None}


@pytest.mark.parametrize(("network", "is_searched"), [("lstm", False), ("my/net.py:net", True)])
def test_an_override_by_a_function_decides_a_condition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, is_searched: bool
) -> None:
    """The path in `--set` starts from the current folder, the path in `when` from the file's."""
    monkeypatch.chdir(tmp_path)
    Path("my").mkdir()
    Path("my/net.py").write_text("def net(): ...\n")
    Path("a.toml").write_text(
        f'{GOOD}model.architecture = ["lstm", "my/net.py:net"]\n'
        'model.options.x = { values = [3, 5], when = { model.architecture = ["my/net.py:net"] } }\n'
    )
    search = load_search(Path("a.toml"), [f"model.architecture={network}"])
    found = {each.key: each.parent for each in search.space}
    assert found == {"model.units": None, **({"model.options.x": None} if is_searched else {})}


def test_a_trials_job_never_reads_the_test_set(tmp_path: Path) -> None:
    """A value of a range is rounded to six digits, a listed value is used as it is."""
    path = tmp_path / "tune_it.toml"
    path.write_text(
        f"{GOOD}model.dropout = {{ min = 0.1, max = 0.6, step = 0.1 }}\n"
        "train.learning_rate = [0.0031622776601683794, 0.00316228]\n"
    )
    values = {"model.units": 16, "model.dropout": 0.1 + 0.2}
    search = load_search(path)
    job = search.job_of({**values, "train.learning_rate": 0.0031622776601683794}, seed=3)
    assert job.train.learning_rate == 0.0031622776601683794
    assert (job.model.units, job.model.dropout, job.train.seed) == (16, 0.3, 3)
    assert job.data.test is False
