#!/usr/bin/env bash

set -euo pipefail
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=slurm/common.sh
source slurm/common.sh

usage() {
    cat <<'END'
usage: bash tests/run.sh [--quick | --all] [PYTEST ARGUMENT...]

Checks style, types and shell scripts, then runs the tests. The script first creates the
environment .venv-test, and changes no other environment. As root on Debian or Ubuntu it also
installs programs that some tests need: Slurm, Chromium, ssh and gcc. If a program is missing, the
tests that need it are skipped.

  (neither)  all tests except the nightly ones: 10 minutes on two cores
  --quick    only the tests that need no cluster, no browser and no long training: 2 minutes
  --all      all tests, including the nightly ones: 90 minutes

The script passes other arguments to pytest: bash tests/run.sh --quick -x tests/slurm -k requeue
END
}

# After 900 s pytest prints a traceback of each thread and ends the worker: the test fails.
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
    TIER=(-m '') # without a time limit, because some nightly tests take longer than 900 s
    shift
    ;;
esac

heading() { printf '\n== %s\n' "$*"; }

# Installs the packages $3... for the tests that need $1, if one of the programs in $2 is missing.
# Needs root on Debian or Ubuntu; otherwise it only says how to install the packages.
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
    provide_all & # in the background, while ensure_venv installs Python packages
    trap wait EXIT
fi
# shellcheck disable=SC2034 # environment.sh reads SETS_UP
SETS_UP=yes # ensure_venv also installs a changed lock file inside a Slurm job
ensure_venv requirements-test.lock
export PATH="$VENV/bin:$PATH"
unset PYTHONDONTWRITEBYTECODE # without bytecode files every process would compile all modules

heading ruff check
ruff check .
heading ruff format
ruff format --check .
heading mypy and shellcheck
mypy &
TYPES=$!
shellcheck --external-sources ./*/*.sh .ci/run
wait "$TYPES"
wait # for provide_all

heading pytest
# Each worker runs one file at a time. pytest starts the longest files first. There are more workers
# than cores, because tests often wait: for processes, or for the time limits of the Slurm cluster.
WORKERS=$(($(nproc) + (${NEEDS_PROGRAMS:-0} ? 2 : 1)))
exec python -m pytest --numprocesses="$WORKERS" --maxprocesses=6 --max-worker-restart=0 \
    --dist=loadfile --no-loadscope-reorder "${TIER[@]}" "$@"
