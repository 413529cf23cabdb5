"""`harness doctor` checks whether the installed TensorFlow supports a card."""

import pytest

from harness.doctor import doctor
from harness.doctor.doctor import judge_card
from harness.system.gpu import Card

WHEEL = ("sm_60", "sm_70", "sm_80", "sm_89", "compute_90")  # build info of TensorFlow 2.21


@pytest.mark.parametrize(
    ("name", "capability", "level", "said"),
    [
        ("T4", (7, 5), "green", "machine code sm_70"),
        ("A100", (8, 0), "green", "machine code sm_80"),
        ("H100", (9, 0), "yellow", "only PTX code (compute_90) for this GPU; the driver"),
        ("B200", (10, 0), "yellow", "XLA may abort on it"),
        ("K80", (3, 7), "red", "TensorFlow has no code for it"),
    ],
)
def test_cards_are_judged_by_the_build(
    name: str, capability: tuple[int, int], level: str, said: str
) -> None:
    """A red card can't be used; a yellow one compiles at first use or may abort."""
    finding = judge_card(Card(f"NVIDIA {name}", capability), "570.26", WHEEL)
    assert finding.level == level
    assert said in finding.found
    assert f"NVIDIA {name}" in finding.found
    assert bool(finding.remedy) == (level != "green")


def test_each_kind_of_card_is_judged_once() -> None:
    """Four A100 cards lead to one finding."""
    answer = {
        "gpus": ["NVIDIA A100"] * 4 + ["NVIDIA H100"],
        "capabilities": [[8, 0]] * 4 + [[9, 0]],
        "targets": list(WHEEL),
    }
    findings = list(doctor.describe_cards(answer, "Kernel Module  550.54.15"))
    assert [each.level for each in findings] == ["green", "yellow"]
