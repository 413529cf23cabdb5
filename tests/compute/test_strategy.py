"""What is checked before TensorFlow is imported, and how its workers meet."""

import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import tensorflow as tf

from harness.compute.strategy import (
    START_S,
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
    """TensorFlow's wait for the others is limited; what comes once they are there is not."""
    done: list[object] = []

    @contextlib.contextmanager
    def limited(limit_s: float) -> Iterator[None]:
        done.append(limit_s)
        yield
        done.append("over")

    group: Any = SimpleNamespace(addresses=["a:1", "b:1"], rank=0, limited=limited)
    monkeypatch.setenv("TF_CONFIG", "")
    monkeypatch.setattr("harness.compute.strategy._expect_heartbeats", done.append)
    monkeypatch.setattr(
        tf.distribute, "MultiWorkerMirroredStrategy", lambda: done.append("started")
    )
    _across_nodes(group)
    assert done == [2, START_S, "started", "over"]
