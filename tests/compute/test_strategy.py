"""`--devices` and HARNESS_DEVICES."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import pytest

from harness.compute.strategy import (
    Devices,
    check_equal_devices,
    one_device_each,
    parse_devices,
    reset_keras,
    site_devices,
)
from harness.errors import InputError
from harness.slurm.nodes import WorkerGroup


@pytest.mark.parametrize(
    ("text", "kind", "count"), [("cpu", "cpu", 1), (" GPU:64 ", "gpu", 64), ("cpu:2", "cpu", 2)]
)
def test_devices_have_a_kind_and_a_count(text: str, kind: str, count: int) -> None:
    """Capitals and blanks are permitted; the default count is one."""
    assert parse_devices(text) == Devices(kind, count)


@pytest.mark.parametrize("text", ["tpu", "cpu:", "cpu:x", "cpu:0", "cpu:-1", "cpu:65", "cpu:²", ""])
def test_other_devices_are_refused(text: str) -> None:
    """The line names the option."""
    with pytest.raises(InputError, match=f"--devices {re.escape(text)}: should be cpu or gpu,"):
        parse_devices(text)


@pytest.mark.parametrize(
    ("option", "site", "said"),
    [
        (None, "cuda", "HARNESS_DEVICES cuda: should be cpu or gpu,"),
        (None, "gpu:2", "HARNESS_DEVICES gpu:2: a run uses one device; use --devices gpu, and"),
        ("cpu:2", "cuda", "--devices cpu:2: a run uses one device; use --devices cpu, and"),
    ],
)
def test_a_refusal_names_the_option_or_the_variable(
    monkeypatch: pytest.MonkeyPatch, option: str | None, site: str, said: str
) -> None:
    """HARNESS_DEVICES is used only without `--devices`."""
    monkeypatch.setenv("HARNESS_DEVICES", site)
    with pytest.raises(InputError) as refused:
        one_device_each(option, "run")
    assert str(refused.value).startswith(said)
    monkeypatch.setenv("HARNESS_DEVICES", "cpu")
    assert one_device_each(None, "run") == site_devices() == "cpu"


def test_the_users_settings_of_keras_do_not_reach_a_run() -> None:
    """A `keras.json` in the home folder could change numbers, or break the pooling."""
    keras.config.set_floatx("float64")
    keras.config.set_image_data_format("channels_first")
    reset_keras()
    assert (keras.config.floatx(), keras.config.image_data_format()) == ("float32", "channels_last")


def test_nodes_with_different_devices_are_refused(tmp_path: Path) -> None:
    """Every worker names both nodes; TensorFlow would wait for ever."""

    def refusals(*texts: str) -> list[BaseException | None]:
        nodes = ["n1", "n2", "n3"][: len(texts)]
        folder = tmp_path / "-".join(texts)
        folder.mkdir()
        (folder / "0.json").touch()
        groups = [WorkerGroup(folder, nodes, rank) for rank in range(len(nodes))]
        with ThreadPoolExecutor(len(nodes)) as pool:
            calls = [
                pool.submit(check_equal_devices, parse_devices(text), group)
                for text, group in zip(texts, groups, strict=True)
            ]
        return [call.exception() for call in calls]

    assert refusals("gpu:2", "gpu:2") == [None, None]
    for texts, said in (
        (("gpu:2", "gpu:2", "gpu:1"), "n1 has gpu:2 and n3 has gpu:1: all .* --devices gpu:1$"),
        (("gpu:2", "cpu:1"), "n1 has gpu:2 and n2 has cpu:1: .*-per-node, or use --devices cpu:1$"),
    ):
        for error in refusals(*texts):
            assert isinstance(error, InputError)
            assert re.search(said, str(error))
