"""Which machines, cards and drivers the wheels of the locks serve: rules alone, no GPU is asked.

By the tags of the wheels, by TensorFlow's build info, and by the machine code that the libraries
of `requirements-gpu.lock` hold. slurm/README.md has the same as a table.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.checks.finding import Finding, Level
from harness.system.cuda import LAST_TRUSTED, Card, Version, code_for

# The first driver branch of each CUDA: it compiles that CUDA's PTX, an older branch refuses it
# (CUDA Toolkit release notes, "CUDA Toolkit and Corresponding Driver Versions").
DRIVER_OF_CUDA = {"12.4": 550, "12.5": 555, "12.6": 560, "12.8": 570, "12.9": 575, "13.0": 580}
OLDEST_DRIVER = 525  # that runs machine code of any CUDA 12 (minor version compatibility)
BLACKWELL, BLACKWELL_DRIVER = (10, 0), 570  # older drivers do not know the card
# cuDNN 9.11 dropped Volta and Pascal: libcudnn_adv, with the recurrent kernels, starts at sm_75.
OLDEST_FOR_CUDNN, CUDNN_WITHOUT_VOLTA = (7, 5), (9, 11)
OLDER_CUDNN = "pip install 'nvidia-cudnn-cu12<9.11' into the environment"


@dataclass(frozen=True)
class Build:
    """What TensorFlow and cuDNN were built for."""

    targets: Sequence[str]  # such as sm_80, machine code, or compute_90, PTX
    cuda: str  # 12.5.1
    cudnn: str = ""  # the installed version, empty if unknown


def parse_version(text: str | None) -> Version:
    """The first dotted number in a text, `550.54.15` to (550, 54, 15); empty without one."""
    found = re.search(r"\d+(?:\.\d+)+", text or "")
    return tuple(map(int, found[0].split("."))) if found else ()


def judge_card(
    card: Card, driver: str | None, build: Build, *, has_passed: bool = False
) -> Finding:
    """Whether a card runs the installed TensorFlow under a driver.

    Args:
        driver: as /proc/driver/nvidia/version has it; None if unknown.
        has_passed: whether a card of this kind has passed the check of its numbers here.
    """
    code = code_for(card.capability, build.targets)
    cuda = ".".join(build.cuda.split(".")[:2])
    is_ptx = code.startswith("compute_")
    needed = DRIVER_OF_CUDA.get(cuda, OLDEST_DRIVER) if is_ptx else OLDEST_DRIVER
    if card.capability >= BLACKWELL:
        needed = max(needed, BLACKWELL_DRIVER)
    number = parse_version(driver)
    shown = ".".join(map(str, number)) or "unknown"
    found = f"{card.title}, driver {shown}: "

    def finding(level: Level, text: str, remedy: str = "") -> Finding:
        return Finding(level, "card", found + text, remedy)

    if not code:
        oldest = ", ".join(build.targets)
        return finding("red", f"TensorFlow holds no code for it ({oldest})", "use a newer card")
    if number and number[0] < needed:
        what = f"compiling the PTX of CUDA {cuda}" if is_ptx else "CUDA 12"
        if card.capability >= BLACKWELL:
            what = "this card"
        text = f"{what} needs driver {needed} or later"
        return finding("red", text, "ask your site for a newer driver, or use other nodes")
    cudnn = parse_version(build.cudnn)
    if card.capability < OLDEST_FOR_CUDNN and cudnn >= CUDNN_WITHOUT_VOLTA:
        text = f"cuDNN {build.cudnn} has no code for it, so no fused LSTM or GRU runs"
        return finding("red", text, f"{OLDER_CUDNN}, or use a card from Turing (7.5) on")
    if card.capability > LAST_TRUSTED and not has_passed:
        text = "XLA may abort the process on it, and no card of this kind has passed its check here"
        return finding("red", text, "harness doctor --probe on such a node tries it")
    if is_ptx:
        text = f"no machine code, PTX {code}: the driver compiles for minutes at first use"
        warm = (
            "before an array, fill the driver's cache once: harness doctor --probe on such a node"
        )
        return finding("yellow", text, warm)
    if not number:
        return finding("yellow", f"machine code {code}", f"needs driver {needed}: see nvidia-smi")
    return finding("green", f"machine code {code}")
