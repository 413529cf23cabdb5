"""One model on several nodes: only where the site says that its network is private.

TensorFlow's servers have no login and listen on every interface of a node; its authors say that
they are for private networks (github.com/tensorflow/tensorflow/issues/11689). Any user who
reaches such a port can read and write files and run operations as the owner of the run.
"""

from pathlib import Path

from harness import PROJECT
from harness.errors import InputError
from harness.files.site_settings import site_setting

TRUSTED_NETWORK = "HARNESS_TRUSTED_NETWORK"
AT_STAKE = (
    "any user who reaches the ports of your nodes could act as you and read and write your files, "
    "because TensorFlow's servers have no login"
)
REMEDY = f"use one node, or, if nobody else reaches them, set {TRUSTED_NETWORK}=1 in slurm/site.sh"


def is_trusted_network(project: Path = PROJECT) -> bool:
    """Whether the site says that nobody else reaches the ports of a job's nodes."""
    return site_setting(TRUSTED_NETWORK, project) == "1"


def check_trusted_network(num_nodes: int, project: Path = PROJECT) -> None:
    """Refuse to train one model on several nodes of a network that is not trusted.

    Raises:
        InputError: for several nodes, until the site has said that its network is private.
    """
    if num_nodes > 1 and not is_trusted_network(project):
        raise InputError(f"one model on {num_nodes} nodes: {AT_STAKE}; {REMEDY}")
