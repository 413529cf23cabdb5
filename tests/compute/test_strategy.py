"""What is checked before TensorFlow is imported."""

import resource

import pytest

from harness.compute.strategy import import_tensorflow, one_device_each, site_devices
from harness.errors import InputError


def test_too_small_an_address_space_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow would end by a signal, without a word."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1_100_000_000, -1))
    with pytest.raises(InputError, match=r"limited to 1\.1 GB.*ulimit -v unlimited"):
        import_tensorflow(None)


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
