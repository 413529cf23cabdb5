"""One model on several nodes: only where the site says that its network is private.

TensorFlow's servers have no login and listen on every interface of a node; its authors say that
they are for private networks (github.com/tensorflow/tensorflow/issues/11689). Any user who
reaches such a port can read and write files and run operations as the owner of the run.
"""

import os
from collections.abc import Mapping

from harness.errors import InputError
from harness.files.site_settings import not_sourced

TRUSTED_NETWORK = "HARNESS_TRUSTED_NETWORK"
AT_STAKE = (
    "any user who reaches the ports of your nodes could act as you and read and write your files, "
    "because TensorFlow's servers have no login"
)
REMEDY = (
    f"use one node, or, if nobody else reaches them, export {TRUSTED_NETWORK}=1 in slurm/site.sh, "
    "and source that file"
)


def is_trusted_network(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the site says that nobody else reaches the ports of a job's nodes."""
    return environment.get(TRUSTED_NETWORK) == "1"


def check_trusted_network(num_nodes: int) -> None:
    """Refuse to train one model on several nodes of a network that is not trusted.

    Raises:
        InputError: for several nodes, until the site has said that its network is private.
    """
    if num_nodes > 1 and not is_trusted_network():
        hint = not_sourced([TRUSTED_NETWORK])
        raise InputError(
            f"one model on {num_nodes} nodes: {AT_STAKE}; {REMEDY}{f' ({hint})' if hint else ''}"
        )
