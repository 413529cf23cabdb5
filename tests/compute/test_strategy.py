"""What is checked before TensorFlow is imported, and how its workers meet."""

import os
import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import tensorflow as tf

from harness.compute.strategy import (
    _across_nodes,
    import_tensorflow,
    one_device_each,
    site_devices,
)
from harness.errors import InputError


def test_a_gpu_gives_its_memory_to_others_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow takes only what it needs, of each GPU that it sees."""
    config = mock.MagicMock()
    config.list_physical_devices.return_value = ["GPU 0", "GPU 1"]
    monkeypatch.setattr(tf, "config", config)
    with mock.patch.dict(os.environ):
        import_tensorflow(None)
    growth = config.experimental.set_memory_growth
    assert growth.mock_calls == [mock.call("GPU 0", True), mock.call("GPU 1", True)]


@pytest.mark.parametrize(
    ("given", "site", "said"),
    [
        (None, "cuda", "HARNESS_DEVICES cuda: unknown device; known: cpu"),
        (None, "gpu:65", "HARNESS_DEVICES gpu:65: the count should be 1 to 64"),
        (None, "gpu:2", "HARNESS_DEVICES gpu:2: a run uses one device; give --devices gpu, and"),
        ("cpu:2", "cuda", "--devices cpu:2: a run uses one device; give --devices cpu, and"),
    ],
)
def test_devices_are_refused_under_the_name_of_what_says_them(
    monkeypatch: pytest.MonkeyPatch, given: str | None, site: str, said: str
) -> None:
    """The option, or the site's variable where no option is given."""
    monkeypatch.setenv("HARNESS_DEVICES", site)
    with pytest.raises(InputError) as refused:
        one_device_each(given, "run")
    assert str(refused.value).startswith(said)
    monkeypatch.setenv("HARNESS_DEVICES", "cpu")
    assert one_device_each(None, "run") == site_devices() == "cpu"


def test_a_strategy_across_nodes_gives_up_on_its_start_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What comes while TensorFlow waits for the others; not once they are there."""
    given_up: list[str] = []
    group: Any = SimpleNamespace(
        addresses=["a:1", "b:1"], rank=0, node="a", give_up=given_up.append
    )
    monkeypatch.setattr("harness.compute.strategy.START_S", 0.2)
    monkeypatch.setenv("TF_CONFIG", "")
    for wait_s, num_given_up in ((0.0, 0), (0.5, 1)):

        def start(wait_s: float = wait_s, **options: object) -> None:
            time.sleep(wait_s)

        monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", start)
        _across_nodes(group)
        time.sleep(0.5)
        assert len(given_up) == num_given_up
