"""What a run uses of its machine: read rarely, charted, shown by `status`, told where a GPU idles.

The GPUs here are pretended: a stand-in for NVML gives the figures, and none was measured.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import InputError
from harness.monitoring.survey import survey
from harness.slurm.queue import Queue
from harness.system.resource_monitor import (
    READ_S,
    IdleWatch,
    ResourceMonitor,
    Sources,
    idle_warning_min,
    resident_memory_gb,
)
from tests.checks.site import Site, site
from tests.conftest import JOBS, Harness
from tests.training.test_tensorboard_log import points

__all__ = ["site"]  # a fixture

MINUTE = 60.0


class Clock:
    """A clock that a test turns."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class FakeNvml:
    """The few calls of NVML, over GPUs that a test sets; handles are GPU names."""

    class NVMLError(Exception):
        pass

    def __init__(self, driver: bool = True, **use: int | None) -> None:
        self.driver, self.use, self.calls = driver, use, 0

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.use = {}

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return self.nvmlDeviceGetHandleByUUID(f"gpu{index}")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid.replace("-", "_") not in self.use:
            raise self.NVMLError("Not Found")
        return uuid.replace("-", "_")

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        self.calls += 1
        if self.use[handle] is None:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=self.use[handle])

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(used=2_500_000_000)


def give(nvml: FakeNvml | None) -> FakeNvml | None:
    return nvml


@contextlib.contextmanager
def gauge_over(
    nvml: FakeNvml | None,
    num_gpus: int = 1,
    *,
    clock: Clock | None = None,
    seen: str | None = None,
    idle_min: float = 10,
) -> Iterator[tuple[ResourceMonitor, list[str]]]:
    said: list[str] = []
    environment = {} if seen is None else {"CUDA_VISIBLE_DEVICES": seen}
    with ResourceMonitor(
        num_gpus,
        2,
        idle_min=idle_min,
        warn=said.append,
        sources=Sources(
            nvml=partial(give, nvml),
            environment=environment,
            clock=clock or Clock(),
            cpu_clock=lambda: 7.0 + 0.5 * ((clock or Clock()).now_s - Clock.now_s),
        ),
    ) as monitor:
        yield monitor, said


def test_figures_are_of_the_time_since_the_last_reading() -> None:
    """Half a processor's time of two is a quarter; another question within READ_S costs nothing."""
    clock, nvml = Clock(), FakeNvml(gpu0=83)
    with gauge_over(nvml, clock=clock) as (monitor, said):
        assert "cpu_share" not in monitor.sample()  # no time has passed
        clock.now_s += READ_S / 2
        calls = nvml.calls
        assert (monitor.sample(), nvml.calls) == ({}, calls)
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
    seen: str | None, num: int, shares: Mapping[str, float]
) -> None:
    """In the order of CUDA_VISIBLE_DEVICES, numbered as TensorFlow does, and no more than used."""
    with gauge_over(FakeNvml(gpu0=10, gpu1=20, GPU_a=30), num, seen=seen) as (monitor, _):
        figures = monitor.sample()
    assert {name: share for name, share in figures.items() if name.endswith("_share")} == shares


@pytest.mark.parametrize(
    ("nvml", "told"),
    [
        (None, "nvidia-ml-py is not installed"),
        (FakeNvml(driver=False, gpu0=5), "Driver Not Loaded"),
        (FakeNvml(), "does not know GPU 0"),
    ],
)
def test_without_nvml_the_rest_is_read(nvml: FakeNvml | None, told: str) -> None:
    """One line says what is not measured; without a GPU there is nothing to say."""
    with gauge_over(nvml) as (monitor, said):
        assert monitor.sample().keys() == {"memory_gb"}
    (line,) = said
    assert told in line
    with gauge_over(nvml, num_gpus=0) as (_, said):
        assert said == []


def test_a_part_of_a_gpu_has_no_use_and_is_never_idle() -> None:
    """NVML does not tell the use of a MIG instance: its memory is read, and nothing is guessed."""
    clock = Clock()
    with gauge_over(FakeNvml(MIG_1=None), seen="MIG-1", clock=clock) as (monitor, said):
        assert monitor.sample().keys() == {"memory_gb", "gpu0_memory_gb"}
        for _ in range(100):
            clock.now_s += MINUTE / 2
            monitor.look()
    assert said == []


def test_nvidias_module_has_the_calls() -> None:
    """Where nvidia-ml-py is installed, it holds every name that is asked for."""
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    names = [name for name in dir(FakeNvml) if name.startswith(("nvml", "NVML"))]
    assert [name for name in names if not hasattr(pynvml, name)] == []


def looked(watch: IdleWatch, clock: Clock, minutes: float, **shares: float | None) -> list[str]:
    """What a watch says that looks twice a minute."""
    said = []
    for _ in range(round(2 * minutes)):
        clock.now_s += MINUTE / 2
        said.append(watch.look(shares))
    return [line for line in said if line]


def test_a_gpu_that_idles_is_told_of_once_a_window() -> None:
    """After ten minutes, and again after twenty; one busy GPU does not hide an idle one."""
    clock = Clock()
    watch = IdleWatch(10, clock)
    assert looked(watch, clock, 10, **{"0": 0.9, "1": 0.04}) == []
    (line,) = looked(watch, clock, 9, **{"0": 0.9, "1": 0.04})
    assert line.startswith("GPU 1 of ")
    assert "idle for 10 min" in line
    assert "step/input_wait_share" in line
    assert "\n" not in line
    assert watch.warning
    assert watch.warning.endswith("idle for 18 min")  # since the first look
    assert len(looked(watch, clock, 10, **{"0": 0.9, "1": 0.04})) == 1


def test_a_moment_of_work_ends_the_idleness() -> None:
    """Five per cent once in ten minutes is no idle window; nor is a time that nobody looked."""
    clock = Clock()
    watch = IdleWatch(10, clock)
    for _ in range(5):
        assert looked(watch, clock, 9, **{"0": 0.0}) == []
        assert looked(watch, clock, 0.5, **{"0": 0.05}) == []
    assert looked(watch, clock, 9, **{"0": 0.0}) == []
    clock.now_s += 3600  # a suspended job
    assert looked(watch, clock, 9, **{"0": 0.0}) == []
    assert watch.warning is None


def test_the_watch_looks_while_nothing_else_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that hangs does not keep it from telling; it ends with the gauge."""
    monkeypatch.setattr("harness.system.resource_monitor.READ_S", 0.01)
    clock = Clock()
    with gauge_over(FakeNvml(gpu0=0), clock=clock, idle_min=1) as (monitor, said):
        deadline = time.monotonic() + 20
        while not said and time.monotonic() < deadline:
            clock.now_s += 5
            time.sleep(0.02)
        assert monitor.warning
        assert said[-1].startswith(monitor.warning)
    told = len(said)
    clock.now_s += 600
    time.sleep(0.05)
    assert len(said) == told


@pytest.mark.parametrize(("text", "minutes"), [("", 10), (" 2.5 ", 2.5), ("0", 0), ("1440", 1440)])
def test_the_site_sets_the_window(text: str, minutes: float) -> None:
    """HARNESS_IDLE_WARNING_MIN, ten minutes where it is not set."""
    assert idle_warning_min({"HARNESS_IDLE_WARNING_MIN": text}) == minutes
    assert idle_warning_min({}) == 10


@pytest.mark.parametrize("text", ["ten", "-1", "1441", "nan", "10min"])
def test_a_window_that_is_none_is_refused(text: str) -> None:
    """In one line with its name, value and rule."""
    with pytest.raises(InputError, match=rf"^HARNESS_IDLE_WARNING_MIN={text}: .*0 to 1440.*site"):
        idle_warning_min({"HARNESS_IDLE_WARNING_MIN": text})


@pytest.mark.parametrize("words", [["train", "lstm"], ["tune", "tune_lstm"]])
def test_a_bad_window_stops_a_command_before_it_begins(harness: Harness, words: list[str]) -> None:
    """Exit code 2, and no folder."""
    harness.environment["HARNESS_IDLE_WARNING_MIN"] = "soon"
    done = harness.run_here(words[0], JOBS / f"{words[1]}.toml")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "HARNESS_IDLE_WARNING_MIN=soon" in done.stderr
    assert not harness.runs.exists()


@pytest.mark.full
def test_a_run_charts_what_it_uses(finished: tuple[Harness, Path]) -> None:
    """TensorBoard gets duration, processors and memory; the exact records have none of it."""
    _, run = finished
    found: dict[str, dict[int, float]] = {}
    for folder, tag, step, value in points(run / "tensorboard"):
        if folder == "train":
            assert step not in found.setdefault(tag, {})
            found[tag][step] = value
    assert found["step/duration_ms"].keys() == found["step/reviews_per_s"].keys()
    (share,), (memory_gb,) = found["device/cpu_share"].values(), found["device/memory_gb"].values()
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
    "input_wait_share": 0.031,
    "device": {"memory_gb": 1.23, "cpu_share": 0.96, "gpu0_share": 0.02, "gpu0_memory_gb": 10.2},
}


def test_status_has_what_a_run_uses(site: Site) -> None:
    """By name in JSON; not once it has ended."""
    site.run("a", "training", **FIGURES)
    site.run("b", "finished", **FIGURES)
    running, ended = survey(site.runs, Queue())
    assert {name: running.as_json()[name] for name in FIGURES} == FIGURES
    assert ended.as_json()["device"] == {}


def test_status_says_that_a_gpu_idles(site: Site) -> None:
    """While it runs, or hangs; not when it is over, nor after a restart."""
    for run_id, phase, age_s in (("a", "training", 1), ("b", "training", 900), ("c", "failed", 1)):
        site.run(run_id, phase, age_s, warning="GPU 0 of n1 idle for 12 min", error="E: no")
    notes = {each.run[-1]: (each.state, each.note) for each in survey(site.runs, Queue())}
    assert notes["a"] == ("running", "GPU 0 of n1 idle for 12 min")
    assert notes["b"][0] == "stale"
    assert notes["b"][1].endswith("; GPU 0 of n1 idle for 12 min")
    assert notes["c"] == ("failed", "E: no")
    site.run("a", "training", 1)
    assert survey(site.runs, Queue())[0].note == ""
