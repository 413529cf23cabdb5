"""A run's use of its machine is measured at intervals, and shown by TensorBoard and `status`."""

import json
from pathlib import Path

import psutil
import pytest

from harness.system.resource_monitor import READ_S, ResourceMonitor, resident_memory_gb
from tests.conftest import Harness
from tests.system.fake_nvml import FakeNvml, let_nvml_answer
from tests.training.test_tensorboard_log import points


def test_the_machine_is_measured_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of one CPU is a quarter of two. Within READ_S of a measurement nothing is measured."""
    let_nvml_answer(monkeypatch, FakeNvml(gpu0=83))
    monkeypatch.setattr(psutil.Process, "cpu_percent", lambda _: 50.0)
    clock = iter([0.0, READ_S / 2, READ_S]).__next__
    monkeypatch.setattr("harness.system.resource_monitor.monotonic", clock)
    monitor = ResourceMonitor(1, 2)
    first, none, second = monitor.sample(), monitor.sample(), monitor.sample()
    assert none == {}
    assert first.keys() == second.keys()
    assert second.pop("memory_gb") == pytest.approx(resident_memory_gb(), abs=0.05)
    assert second == {"cpu_share": 0.25, "gpu0_share": 0.83, "gpu0_memory_gb": 2.5}


@pytest.mark.parametrize(
    ("seen", "num", "shares"),
    [
        (None, 2, {"gpu0_share": 0.1, "gpu1_share": 0.2}),
        ("1,0", 1, {"gpu0_share": 0.2}),
        ("GPU-a, 0", 2, {"gpu0_share": 0.3, "gpu1_share": 0.1}),
        ("GPU-, 1", 1, {}),  # CUDA knows this abbreviation, but NVML does not
    ],
)
def test_gpus_are_those_that_the_process_sees(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, num: int, shares: dict[str, float]
) -> None:
    """GPUs are numbered in the order of CUDA_VISIBLE_DEVICES; only used GPUs are measured."""
    let_nvml_answer(monkeypatch, FakeNvml(gpu0=10, gpu1=20, GPU_a=30), seen)
    figures = ResourceMonitor(num, 2).sample()
    found = {name: share for name, share in figures.items() if name.endswith("_share")}
    assert found == {**shares, "cpu_share": figures["cpu_share"]}


def test_an_idle_gpu_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each time a GPU was idle for HARNESS_IDLE_WARNING_MIN, a warning names it; 0 = never."""
    let_nvml_answer(monkeypatch, FakeNvml(gpu0=0, gpu1=5))
    for setting, num_warnings in (("2", 2), ("0", 0)):
        monkeypatch.setenv("HARNESS_IDLE_WARNING_MIN", setting)
        clock = iter([1.0, 100.0, 122.0, 237.0, 243.0]).__next__
        monkeypatch.setattr("harness.system.resource_monitor.monotonic", clock)
        monitor = ResourceMonitor(2, 2)
        for _ in range(5):
            assert monitor.sample()
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == num_warnings
        assert all("GPU 0 of " in line and "idle for 2 min" in line for line in lines)


@pytest.mark.parametrize("nvml", [None, FakeNvml(driver=False, gpu0=5)])
def test_without_nvml_only_gpus_are_not_measured(
    monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line warns about the GPUs; a run without a GPU needs no warning."""
    let_nvml_answer(monkeypatch, nvml)
    for num_gpus in (0, 1):
        assert ResourceMonitor(num_gpus, 2).sample().keys() == {"memory_gb", "cpu_share"}
    (line,) = capsys.readouterr().err.splitlines()
    assert "NVML knows 0 of the 1 GPUs in use; check the GPUs with nvidia-smi, or install" in line


@pytest.mark.full
def test_tensorboard_shows_the_use(finished: tuple[Harness, Path]) -> None:
    """TensorBoard and the heartbeat show durations, CPUs and memory."""
    _, run = finished
    found: dict[str, dict[int, float]] = {}
    for folder, tag, step, value in points(run / "tensorboard"):
        if folder == "train":
            assert step not in found.setdefault(tag, {})
            found[tag][step] = value
    assert found["step/duration_ms"].keys() == found["step/reviews_per_s"].keys()
    *_, share = found["device/cpu_share"].values()
    *_, memory_gb = found["device/memory_gb"].values()
    assert 0 < share < 1.5
    assert 0.1 < memory_gb < 10
    state = json.loads((run / "state.json").read_text())
    assert state["device"] == pytest.approx({"cpu_share": share, "memory_gb": memory_gb}, rel=1e-3)
    assert state["step_ms"] > 0
