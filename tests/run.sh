#!/usr/bin/env bash
# Checks everything: style, types, shell scripts, then the tests. Arguments go to pytest.
# It makes an environment of its own first and leaves yours alone.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=slurm/common.sh
source slurm/common.sh

heading() { printf '\n== %s\n' "$*"; }

heading environment
read_site
VENV=$PROJECT/.venv-test
HARNESS_CONTAINER=()
ensure_venv requirements-test.lock
export PATH="$VENV/bin:$PATH"
unset PYTHONPATH PYTHONHOME

heading ruff check
ruff check .
heading ruff format
ruff format --check .
heading mypy
mypy
heading shellcheck
shellcheck --external-sources ./*/*.sh .ci/run

# Installs the packages that follow for the tests of $1, where that is possible.
install_for() {
    local what=$1 log=$VENV/$1-install.log
    shift
    heading "$what for its tests"
    if [[ -f /etc/debian_version && $(id -u) == 0 ]]; then
        (
            export DEBIAN_FRONTEND=noninteractive
            apt-get update && apt-get install --yes --no-install-recommends "$@"
        ) >"$log" 2>&1 </dev/null || say "apt-get could not install $* (log: $log)"
    fi
}
SLURM=(slurmctld slurmd slurm-client munge)
has_slurm() {
    python -c 'import sys; from tests.slurm.cluster import is_installed as ok; sys.exit(not ok())'
}
BROWSER=(chromium chromium-driver openssh-server openssh-client)
has_browser() { PATH=$PATH:/usr/sbin type -P chromium chromedriver ssh sshd >/dev/null; }

NO_SLURM=()
has_slurm || install_for slurm "${SLURM[@]}"
if ! has_slurm; then
    say "tests/slurm is left out; on Debian or Ubuntu its needs come by:" \
        "sudo apt-get install ${SLURM[*]}"
    NO_SLURM=(--ignore=tests/slurm)
fi
has_browser || install_for browser "${BROWSER[@]}"
has_browser || say "the tests in a browser are left out; on Debian their needs come by:" \
    "sudo apt-get install ${BROWSER[*]}"

heading pytest
# A file each, and more at a time than there are cores: they wait for processes more than they
# compute. In their order, in which the longest come first.
exec python -m pytest --numprocesses="$(($(nproc) + 1))" --maxprocesses=6 \
    --dist=loadfile --no-loadscope-reorder \
    ${NO_SLURM[@]+"${NO_SLURM[@]}"} "$@"
