#!/usr/bin/env bash

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=slurm/common.sh
source slurm/common.sh

usage() {
    cat <<'END'
usage: bash tests/run.sh [--quick | --all] [PYTEST ARGUMENT...]

Checks style, types and shell scripts, then runs the tests. It makes an environment of its own
first (.venv-test) and leaves yours alone. As root on Debian or Ubuntu it also installs what some
tests need: Slurm, and a browser. Where either is missing, its tests are skipped.

  (neither)  everything but the nightly tests: 11 minutes on two cores
  --quick    no test on a cluster, in a browser or of long training: two minutes
  --all      the nightly tests too

Other arguments go to pytest, for example: bash tests/run.sh --quick -x tests/slurm -k requeue
END
}

# A test that hangs fails, and ends its worker, which prints where each thread is.
TIER=(-o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true)
NEEDS_PROGRAMS=1
case ${1:-} in
-h | --help)
    usage
    exit
    ;;
--quick)
    TIER+=(-m 'not slow and not gpu and not full and not cluster')
    NEEDS_PROGRAMS=''
    shift
    ;;
--all)
    TIER=(-m '') # some take longer
    shift
    ;;
esac

heading() { printf '\n== %s\n' "$*"; }

# Installs the packages $3... for the tests of $1, where that is possible, unless all of the programs
# that $2 names are there.
provide() {
    local what=$1 log=$PROJECT/.venv-test.$1.log PATH=$PATH:/usr/sbin
    local -a programs
    read -ra programs <<<"$2"
    shift 2
    ! type -P "${programs[@]}" >/dev/null || return 0
    if [[ -f /etc/debian_version && $(id -u) == 0 ]]; then
        (
            export DEBIAN_FRONTEND=noninteractive
            apt-get update && apt-get install --yes --no-install-recommends "$@"
        ) >"$log" 2>&1 </dev/null || say "apt-get could not install $* (log: $log)"
    fi
    type -P "${programs[@]}" >/dev/null ||
        say "the tests that need $what are skipped; on Debian or Ubuntu, install it by:" \
            "sudo apt-get install $*"
}

provide_all() {
    provide compiler gcc gcc libc6-dev
    provide slurm 'munged slurmctld slurmd sbatch' slurmctld slurmd slurm-client munge
    provide browser 'chromium chromedriver ssh sshd' \
        chromium chromium-driver openssh-server openssh-client
}

heading environment
VENV=$PROJECT/.venv-test
HARNESS_CONTAINER=()
if [[ -n $NEEDS_PROGRAMS ]]; then
    provide_all & # while pip installs
    trap wait EXIT
fi
# shellcheck disable=SC2034 # environment.sh reads it
SETS_UP=yes # a changed lock file is installed, in a job too
ensure_venv requirements-test.lock
export PATH="$VENV/bin:$PATH"
unset PYTHONPATH PYTHONHOME
unset PYTHONDONTWRITEBYTECODE # hundreds of processes, and each worker, would compile every module

heading ruff check
ruff check .
heading ruff format
ruff format --check .
heading mypy and shellcheck
mypy &
TYPES=$!
shellcheck --external-sources ./*/*.sh .ci/run
wait "$TYPES"
wait # for what is installed

heading pytest
# One file at a time on each worker, the longest first. More workers than cores, because the tests
# wait for processes, and those on a cluster for its clock.
WORKERS=$(($(nproc) + (${NEEDS_PROGRAMS:-0} ? 2 : 1)))
exec python -m pytest --numprocesses="$WORKERS" --maxprocesses=6 --max-worker-restart=0 \
    --dist=loadfile --no-loadscope-reorder "${TIER[@]}" "$@"
