"""A run's use of its machine is measured at intervals, and shown by TensorBoard and `status`."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.slurm.client import Queue
from harness.system.resource_monitor import READ_S, ResourceMonitor, resident_memory_gb
from harness.tracking.status import survey
from tests.conftest import Harness
from tests.system.fake_nvml import FakeNvml
from tests.tracking.site import Site, site
from tests.training.test_tensorboard_log import points

__all__ = ["site"]  # a fixture

Gauge = contextlib.AbstractContextManager[tuple[ResourceMonitor, list[str]]]


class Clock:
    """A clock that the test moves."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def gauge_over(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gauge]:
    """Makes a monitor over `FakeNvml`; the block gets it with its warnings."""

    @contextlib.contextmanager
    def gauge(
        nvml: FakeNvml | None,
        num_gpus: int = 1,
        *,
        clock: Clock | None = None,
        seen: str | None = None,
    ) -> Iterator[tuple[ResourceMonitor, list[str]]]:
        said: list[str] = []
        monkeypatch.setattr("harness.system.gpu.find_nvml", lambda: nvml)
        with ResourceMonitor(
            num_gpus,
            2,
            warn=said.append,
            environment={} if seen is None else {"CUDA_VISIBLE_DEVICES": seen},
            clock=clock or Clock(),
            cpu_clock=lambda: 7.0 + 0.5 * ((clock or Clock()).now_s - Clock.now_s),
        ) as monitor:
            yield monitor, said

    return gauge


def test_figures_are_of_the_time_since_the_last_reading(gauge_over: Callable[..., Gauge]) -> None:
    """A process that uses half of one CPU uses a quarter of two; within READ_S nothing is read."""
    clock = Clock()
    with gauge_over(FakeNvml(gpu0=83), clock=clock) as (monitor, said):
        assert "cpu_share" not in monitor.sample()  # no time has passed
        clock.now_s += READ_S / 2
        assert monitor.sample() == {}
        clock.now_s += READ_S
        figures = monitor.sample()
        assert figures.pop("memory_gb") == pytest.approx(resident_memory_gb(), abs=0.05)
        assert figures == {"cpu_share": 0.25, "gpu0_share": 0.83, "gpu0_memory_gb": 2.5}
        assert said == []


@pytest.mark.parametrize(
    ("seen", "num", "shares"),
    [
        (None, 2, {"gpu0_share": 0.1, "gpu1_share": 0.2}),
        ("1,0", 1, {"gpu0_share": 0.2}),
        ("GPU-a, 0", 2, {"gpu0_share": 0.3, "gpu1_share": 0.1}),
    ],
)
def test_gpus_are_those_that_the_process_sees(
    gauge_over: Callable[..., Gauge], seen: str | None, num: int, shares: Mapping[str, float]
) -> None:
    """They have the order of CUDA_VISIBLE_DEVICES; only used GPUs are measured."""
    with gauge_over(FakeNvml(gpu0=10, gpu1=20, GPU_a=30), num, seen=seen) as (monitor, _):
        figures = monitor.sample()
    assert {name: share for name, share in figures.items() if name.endswith("_share")} == shares


@pytest.mark.parametrize("nvml", [None, FakeNvml(driver=False, gpu0=5)])
def test_without_nvml_only_gpus_are_not_measured(
    gauge_over: Callable[..., Gauge], nvml: FakeNvml | None
) -> None:
    """One line warns about it; a run without a GPU needs no warning."""
    with gauge_over(nvml) as (monitor, said):
        assert monitor.sample().keys() == {"memory_gb"}
    (line,) = said
    assert "NVML knows 0 of the 1 used; compare nvidia-smi, or HARNESS_EXTRA=gpu" in line
    with gauge_over(nvml, num_gpus=0) as (_, said):
        assert said == []


@pytest.mark.full
def test_tensorboard_shows_the_use(finished: tuple[Harness, Path]) -> None:
    """It gets durations, CPUs and memory; the records that are compared by bytes have none."""
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
    for name in ("metrics.jsonl", "result.json"):
        assert "share" not in (run / name).read_text()
        assert "_ms" not in (run / name).read_text()


FIGURES: dict[str, Any] = {
    "step_ms": 24.46,
    "device": {"memory_gb": 1.23, "cpu_share": 0.96, "gpu0_share": 0.02, "gpu0_memory_gb": 10.2},
}


def test_status_shows_the_use_of_active_runs(site: Site) -> None:
    """`status --json` has the figures by name, until the run ends."""
    site.run("a", "training", **FIGURES)
    site.run("b", "finished", **FIGURES)
    running, ended = survey(site.runs, Queue())
    assert {name: running.as_json()[name] for name in FIGURES} == FIGURES
    assert ended.as_json()["device"] == {}
