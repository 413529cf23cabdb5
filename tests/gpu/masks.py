"""Prints a checksum of the dropout masks of each device: `python -m tests.gpu.masks DEVICE…`."""

import hashlib
import json
import sys

from harness.compute.strategy import import_tensorflow, make_strategy, parse_devices
from harness.slurm.environment import SlurmEnvironment
from harness.system.console import echo

SEED, STEPS, RATE, SHAPE = 1, 3, 0.4, (32, 64)  # number, rate and shape of the masks


def main(*devices: str) -> None:
    """Draw the masks of a few steps on each device, and print the checksums as JSON."""
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
    echo(json.dumps(sums))


if __name__ == "__main__":
    main(*sys.argv[1:])
