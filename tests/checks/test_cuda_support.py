"""Cards, drivers and systems against the wheels of the locks: a table of cases."""

import pytest

from harness.checks import doctor
from harness.checks.cuda_support import Build, judge_card
from harness.system.cuda import Card, code_for

WHEEL = ("sm_60", "sm_70", "sm_80", "sm_89", "compute_90")  # TensorFlow 2.21's own build info
BUILD = Build(WHEEL, "12.5.1", "9.28.0.42")
PRE_VOLTA_CUDNN = Build(WHEEL, "12.5.1", "9.10.2.21")


@pytest.mark.parametrize(
    ("name", "capability", "code"),
    [
        ("P100", (6, 0), "sm_60"),
        ("V100", (7, 0), "sm_70"),
        ("T4", (7, 5), "sm_70"),
        ("A100", (8, 0), "sm_80"),
        ("A10", (8, 6), "sm_80"),
        ("L40S", (8, 9), "sm_89"),
        ("H100", (9, 0), "compute_90"),
        ("GH200", (9, 0), "compute_90"),
        ("B200", (10, 0), "compute_90"),
        ("K80", (3, 7), ""),
    ],
)
def test_what_a_card_runs(name: str, capability: tuple[int, int], code: str) -> None:
    """Machine code of its own major version where there is some, otherwise PTX, else nothing."""
    assert code_for(capability, WHEEL) == code, name


@pytest.mark.parametrize(
    ("name", "capability", "levels"),  # under the drivers 515, 525, 550, 555 and 570
    [
        ("V100", (7, 0), "red red red red red"),  # no code in cuDNN
        ("T4", (7, 5), "red green green green green"),
        ("A100", (8, 0), "red green green green green"),
        ("L40S", (8, 9), "red green green green green"),
        ("H100", (9, 0), "red red red yellow yellow"),  # it compiles PTX
        ("GH200", (9, 0), "red red red yellow yellow"),
        ("B200", (10, 0), "red red red red red"),  # XLA may not survive it
        ("K80", (3, 7), "red red red red red"),
    ],
)
def test_drivers_and_cards(name: str, capability: tuple[int, int], levels: str) -> None:
    """Red needs another driver or card, yellow compiles at first use; each names its remedy."""
    drivers = ("515.105.01", "525.60.13", "550.54.15", "555.42.02", "570.26")
    card = Card(f"NVIDIA {name}", capability)
    findings = [
        judge_card(card, f"NVRM version: NVIDIA UNIX Module  {driver}  Tue", BUILD)
        for driver in drivers
    ]
    assert " ".join(each.level for each in findings) == levels
    assert all(bool(each.remedy) == (each.level != "green") for each in findings)
    assert all(name in each.found for each in findings)


def test_the_reasons_are_named() -> None:
    """The driver that is needed, and what for."""
    h100, b200, v100 = Card("H100", (9, 0)), Card("B200", (10, 0)), Card("V100", (7, 0))
    found = judge_card(h100, "550.54.15", BUILD).found
    assert "compiling the PTX of CUDA 12.5 needs driver 555" in found
    assert "this card needs driver 570" in judge_card(b200, "555.42.02", BUILD).found
    assert "cuDNN 9.28.0.42 has no code for it" in judge_card(v100, "555.42.02", BUILD).found
    assert judge_card(v100, "555.42.02", PRE_VOLTA_CUDNN).level == "green"


def test_an_unknown_driver_is_yellow() -> None:
    """In a container /proc may not show it: nothing is refused."""
    finding = judge_card(Card("NVIDIA A100", (8, 0)), None, BUILD)
    assert (finding.level, "driver unknown" in finding.found) == ("yellow", True)


def test_doctor_judges_each_kind_of_card_once() -> None:
    """Four A100 are one line."""
    answer = {
        "gpus": ["NVIDIA A100"] * 4 + ["NVIDIA H100"],
        "capabilities": [[8, 0]] * 4 + [[9, 0]],
        "targets": list(WHEEL),
        "cuda": "12.5.1",
        "cudnn": None,
        "passed": [],
    }
    findings = list(doctor.describe_cards(answer, "Kernel Module  550.54.15"))
    assert [each.level for each in findings] == ["green", "red"]


@pytest.mark.parametrize(
    ("cuda", "said"),
    [("", "is no CUDA build, as PyPI's for aarch64"), ("12.5.1", "compare nvidia-smi")],
)
def test_the_installed_build_is_judged(
    cuda: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site may have built its own for a GH200: the name of the machine says nothing."""
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: "570.26")
    monkeypatch.setattr(doctor, "hidden_by", lambda: "")
    answer = {"gpus": [], "cuda": cuda, "cuda_packages": True}
    assert said in doctor.describe_gpus(answer, None).remedy
