#!/usr/bin/env bash
# What all job scripts share: the site's settings, the virtual environment, the run.
#
#   bash slurm/common.sh --setup    make the environment, get the data, on a login node
#
# Works with bash 3.2 (macOS) and later, so an empty array is expanded as ${a[@]+"${a[@]}"}.

set -euo pipefail

PROJECT=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
export PATH HOME=${HOME:-~} # which `--export=NONE` drops

# Write one line to standard error. In a file, such as a job's log, it carries date, time and level
# like the lines of the harness itself.
say() { log_line INFO "$@"; }
warn() { log_line WARNING "$@"; }
complain() { log_line ERROR "$@"; }
log_line() {
    local prefix='harness:'
    [[ ! -f /dev/stderr ]] || prefix="$(date '+%Y-%m-%d %H:%M:%S') $1"
    shift
    printf '%s %s\n' "$prefix" "$*" >&2
}

# The site's settings. Sourced here as in a person's shell: in a function, `declare` makes its names
# local.
HARNESS_CONTAINER=()
if [[ -f $PROJECT/slurm/site.sh ]]; then
    set +u # module systems read variables that are unset
    # shellcheck source=slurm/site.example.sh
    source "$PROJECT/slurm/site.sh" || warn "slurm/site.sh ended with status $?; the job goes on"
    set -u
fi

# Runs a command of Python's in the site's container.
inside() { ${HARNESS_CONTAINER[@]+"${HARNESS_CONTAINER[@]}"} "$@"; }

# shellcheck source=slurm/environment.sh
source "$PROJECT/slurm/environment.sh"
# shellcheck source=slurm/requeue.sh
source "$PROJECT/slurm/requeue.sh"

# Whether this script is a Slurm job, or the user's own job script calls it. Slurm runs it from a
# copy in a spool folder. In an interactive allocation it is none, and several runs may share its id;
# one that a notebook server keeps is a batch job, but its terminals are no batch script.
is_batch() { [[ -n ${SLURM_JOB_ID:-} ]] && { ! is_called || is_in_batch_script; }; }
is_called() { [[ $(dirname "$0") -ef $PROJECT/slurm ]]; }
is_in_batch_script() { [[ ${ENVIRONMENT:-} == BATCH && -z ${SLURM_STEP_ID:-} && ! -t 0 && ! -t 2 ]]; }

# A batch script has no step, but sbatch passes on that of the shell that called it.
forget_step() {
    if is_called; then
        [[ ${ENVIRONMENT:-} == BATCH && -n ${SLURM_STEP_ID:-} ]] || return 0
        [[ $(timeout 20 scontrol show step "$SLURM_JOB_ID.$SLURM_STEP_ID" 2>&1) == *'not found'* ]] ||
            return 0
    fi
    unset SLURM_STEPID "${!SLURM_STEP_@}" "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}"
}

prepare() {
    forget_step
    VENV=${HARNESS_VENV:-.venv}
    [[ $VENV == /* ]] || VENV=$PROJECT/$VENV
    choose_locks
    if [[ -n ${HARNESS_SNAPSHOT:-} ]]; then
        # It existed when the job was submitted, and other jobs may be using it.
        if ! has_interpreter; then
            warn "$VENV/bin/python leads to $(readlink -f "$VENV/bin/python" || true), which is not" \
                "on this node; load the module that has it in slurm/site.sh"
        elif ! is_ready "${LOCKS[@]}"; then
            warn "$VENV was not made from the lock files of $PROJECT"
        fi
    else
        ensure_venv "${LOCKS[@]}"
        mkdir -p "$PROJECT/logs" # older versions of sbatch do not make it
    fi
    unset PYTHONHOME
    export PYTHONPATH=$PROJECT # this script's own code, whatever is installed
    export HARNESS_RUNS="${HARNESS_RUNS:-$PROJECT/runs}"
    HARNESS=(${HARNESS_CONTAINER[@]+"${HARNESS_CONTAINER[@]}"} "$VENV/bin/harness")
}

# What a Slurm job needs beyond a local run.
prepare_batch() {
    local log
    listen # before anything runs: a time limit's warning this early would end the job for good
    log=$(readlink "/proc/$$/fd/1") || log=''
    [[ ! -f $log ]] || export HARNESS_LOG=$log
    # A task's log is named by an id that nobody else shows; its run is slurm-$JOB.
    [[ ! -f $log || $JOB == "$SLURM_JOB_ID" || $log != *-"$SLURM_JOB_ID".out ]] ||
        ln -sf "${log##*/}" "${log%"$SLURM_JOB_ID".out}$JOB.out" || true
    export HARNESS_OFFLINE=1 # compute nodes often have no network; a download would only time out
    [[ ${SLURM_JOB_NUM_NODES:-1} -gt 1 ]] || return 0
    HARNESS_NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tr '\n' ' ')
    export HARNESS_NODES
}

# Runs what a script of this folder is for, with the user's arguments, and ends the script: `train
# JOB`, `tune`, `resume run|sweep FOLDER`, `compare`, `tensorboard` or `doctor`.
supervise() {
    local plan options=()
    prepare
    ! is_called || options+=(--called)
    ! is_batch || { prepare_batch; options+=(--job); }
    if plan=$(shown | "${HARNESS[@]}" job-begin --home "$PROJECT" ${options[@]+"${options[@]}"} \
        -- "$@"); then
        BEGUN=yes
        eval "$plan" # sets STEP and RUN, and calls inside_venv
    else
        RC=$?
    fi
    finish
}

# Runs the program $1 of the environment with its arguments; by srun where STEP is a job step.
inside_venv() {
    run_child ${STEP[@]+"${STEP[@]}"} ${HARNESS_CONTAINER[@]+"${HARNESS_CONTAINER[@]}"} \
        "$VENV/bin/$1" "${@:2}"
}

# Runs the command given, and sets RC to its exit code. It runs in the background, since a trap waits
# for a command in the foreground.
run_child() {
    local status
    RC=127
    [[ $1 != srun ]] || STOPPING=USR2 # at a TERM it would kill its step at once
    listen
    "$@" &
    CHILD=$!
    [[ -z $SIGNALS ]] || kill -s "$STOPPING" "$CHILD"
    while HEARD=''; do
        status=0
        wait "$CHILD" || status=$?
        # A signal ends `wait` early; 127 means that an earlier turn already has the status.
        [[ $status == 127 && $RC != 127 ]] || RC=$status
        [[ -n $HEARD ]] || break
    done
    CHILD=''
}

SIGNALS=''    # the names of those that this script received
HEARD=''      # yes after a signal
CHILD=''      # the number of the process that is told of them
STOPPING=TERM # what it is sent to stop; in the background it ignores INT

listen() {
    local name
    # shellcheck disable=SC2064
    for name in INT TERM USR1 USR2; do trap "hear $name" $name; done
}

# Passes on only the first signal of a kind, since Slurm and users repeat them.
hear() {
    local number=$1
    HEARD=yes
    [[ " $SIGNALS " != *" $1 "* ]] || return 0
    SIGNALS+=" $1"
    [[ $1 == USR* ]] || number=$STOPPING
    [[ -z $CHILD ]] || kill -s "$number" "$CHILD" 2>/dev/null || true
    [[ $1 != TERM ]] || ! is_batch || requeue_if_preempted
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    [[ "$*" == --setup ]] || { complain "usage: bash slurm/common.sh --setup"; exit 2; }
    SETS_UP=yes
    prepare
    "${HARNESS[@]}" data fetch || warn "the full dataset is missing; until then, runs use a SAMPLE"
    ! command -v sbatch >/dev/null || "${HARNESS[@]}" ask-network "$PROJECT"
    say "ready: $VENV"
fi
