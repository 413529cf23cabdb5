"""The child processes of the checks: `python -m tests.gpu.child REQUEST`."""

import hashlib
from collections.abc import Sequence
from typing import Any

from harness.compute.strategy import import_tensorflow, make_strategy, parse_devices
from harness.slurm.environment import SlurmEnvironment
from harness.system.gpu import library_versions
from tests.asked_child import answer_request

SEED, STEPS, RATE, SHAPE = 1, 3, 0.4, (32, 64)  # of the masks


def main() -> None:
    """Answer the request in the first command-line argument."""
    answer_request({"masks": _masks, "libraries": library_versions})


def _masks(devices: Sequence[str]) -> dict[str, Any]:
    """Return, for each device, a checksum of the dropout masks that it draws."""
    tf = import_tensorflow(SlurmEnvironment.from_environment())
    if all(device.startswith("cpu") for device in devices):
        make_strategy(parse_devices(f"cpu:{len(devices)}"))

    from harness.layers import uniform

    sums = {}
    for device in devices:
        digest = hashlib.sha256()
        with tf.device(device):
            for step in range(STEPS):
                drawn = uniform(SHAPE, tf.constant([SEED << 16, step], tf.int64))
                digest.update((drawn >= RATE).numpy().tobytes())
        sums[device] = digest.hexdigest()
    return {"sums": sums}


if __name__ == "__main__":
    main()
