"""`--devices` and HARNESS_DEVICES."""

import re

import pytest

from harness.compute.strategy import Devices, one_device_each, parse_devices, site_devices
from harness.errors import InputError


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
