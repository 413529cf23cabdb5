#!/usr/bin/env bash
# All job scripts source this file. This file reads the site's settings, prepares the Python
# environment, starts Python and forwards signals to it.
#
#   bash slurm/common.sh --setup    on a login node: creates the environment, fetches the data

set -euo pipefail

PROJECT=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
export PATH HOME=${HOME:-~} # `sbatch --export=NONE` leaves these variables unexported

# These functions write a line to standard error. In a file, such as a job's log, the line begins
# with time and level, like a line that Python writes there.
say() { log_line INFO "$@"; }
warn() { log_line WARNING "$@"; }
complain() { log_line ERROR "$@"; }
log_line() {
    local prefix='harness:'
    [[ ! -f /dev/stderr ]] || prefix="$(date '+%Y-%m-%d %H:%M:%S') $1"
    shift
    printf '%s %s\n' "$prefix" "$*" >&2 || true # a full disk must not end the job
}

# Source the site's settings outside of functions: in a function, `declare` in site.sh would create
# local variables.
HARNESS_CONTAINER=()
if [[ -f $PROJECT/slurm/site.sh ]]; then
    harness_project=$PROJECT # some modules set PROJECT
    set +u                   # module systems read unset variables
    # shellcheck source=slurm/site.example.sh
    source "$PROJECT/slurm/site.sh" || warn "slurm/site.sh ended with status $?, which is ignored"
    set -u
    PROJECT=$harness_project
fi

# Runs a command of the Python environment, in the site's container if there is one.
inside() { "${HARNESS_CONTAINER[@]}" "$@"; }

harness() { inside "$VENV/bin/harness" "$@"; }

# shellcheck source=slurm/environment.sh
source "$PROJECT/slurm/environment.sh"
# shellcheck source=slurm/requeue.sh
source "$PROJECT/slurm/requeue.sh"

# True if Slurm runs this script as the batch script of a job. Slurm then runs a copy with the name
# slurm_script, or the user's own batch script ends with `exec bash slurm/lstm.sh`. Any other script
# in a job is no batch script, because several such scripts would use the job's id for their runs.
# Some sites hide the parent's command line, and sbatch in a job step passes SLURM_STEP_ID on.
is_batch() {
    [[ -n ${SLURM_JOB_ID:-} ]] || return 1
    [[ ${0##*/} == slurm_script || (${SLURM_TASK_PID:-} == "$$" && -z ${SLURM_STEP_ID:-}) ]] ||
        grep -qs '\[.*batch\]' "/proc/$PPID/cmdline"
}

prepare() {
    export HARNESS_RUNS="${HARNESS_RUNS:-$PROJECT/runs}"
    VENV=${HARNESS_VENV:-.venv}
    [[ $VENV == /* ]] || VENV=$PROJECT/$VENV
    choose_locks
    ensure_venv "${LOCKS[@]}"
    # Older Slurm does not create this folder, which only jobs submitted in the project need.
    [[ -n ${HARNESS_SNAPSHOT:-} ]] || mkdir -p "$PROJECT/logs" 2>/dev/null || true
    export PYTHONPATH=$PROJECT # Python imports this project's code, even if a copy is installed
}

# Prepares what only a Slurm job needs.
prepare_batch() {
    local log
    log=$(readlink "/proc/$$/fd/1") || log=''
    [[ ! -f $log ]] || export HARNESS_LOG=$log
    # The name of an array task's log contains the task's raw job id. Make a link to the log; the
    # link's name contains the id that squeue shows.
    [[ ! -f $log || $JOB == "$SLURM_JOB_ID" || $log != *-"$SLURM_JOB_ID".out ]] ||
        ln -sf "${log##*/}" "${log%"$SLURM_JOB_ID".out}$JOB.out" || true
    # If sbatch was called in a job step, it passed the step's variables on. Remove them, because a
    # batch script is in no step.
    unset SLURM_STEPID "${!SLURM_STEP_@}" "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}"
    export HARNESS_OFFLINE=1 # on nodes without internet access, a download would only time out
    [[ ${SLURM_JOB_NUM_NODES:-1} -gt 1 ]] || return 0
    HARNESS_NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tr '\n' ' ')
    export HARNESS_NODES
}

# Runs the command of a script with the user's arguments, and ends the script. The command is `train
# JOB`, `tune`, `resume run|sweep FOLDER`, `compare`, `tensorboard` or `doctor`.
supervise() {
    local plan job=''
    ! is_batch || listen # before an installation: an untrapped signal would prevent the requeue
    is_batch || [[ $1 != t* || ${ENVIRONMENT:-} != BATCH || -n ${SLURM_STEP_ID:-} ]] ||
        warn "the job script should end with: exec bash $0; without exec, a requeued job begins anew"
    prepare
    ! is_batch || { prepare_batch; job=--job; }
    if plan=$(show_job | harness job-begin ${job:+"$job"} -- "$@"); then
        BEGUN=yes
        eval "$plan" # sets STEP and RUN, and calls inside_venv
    else
        RC=$?
    fi
    finish
}

# Runs the environment's program $1 with its arguments, through srun if STEP is not empty.
inside_venv() {
    run_child "${STEP[@]}" "${HARNESS_CONTAINER[@]}" "$VENV/bin/$1" "${@:2}"
}

# Runs a command, and sets RC to the exit code. The command runs in the background, because during a
# command in the foreground bash runs no trap.
run_child() {
    local status
    RC=127
    [[ $1 != srun ]] || STOPPING=USR2 # after TERM, srun would kill its job step at once
    listen
    "$@" &
    CHILD=$!
    [[ -z $SIGNALS ]] || kill -s "$STOPPING" "$CHILD" 2>/dev/null || true # it may have ended
    while HEARD=''; do
        status=0
        wait "$CHILD" || status=$?
        # A signal ends `wait` early, so wait again. That `wait` returns 127 if the first `wait`
        # already returned CHILD's exit code, and -1 if bash 5.2 lost that code to the signal.
        [[ $status =~ ^(127|-1)$ && $RC != 127 ]] || RC=$status
        [[ -n $HEARD ]] || break
    done
    CHILD=''
}

SIGNALS=''    # names of the received signals
HEARD=''      # yes after a signal
CHILD=''      # id of the process that receives the signals
STOPPING=TERM # the signal that stops CHILD; a process in the background ignores INT

listen() {
    local name
    # shellcheck disable=SC2064
    for name in INT TERM USR1 USR2; do trap "hear $name" $name; done
}

# Handles a signal: forwards only the first of each kind, because Slurm and users repeat signals.
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
    harness data fetch || warn "the full dataset is missing; without it, runs use a SAMPLE"
    ready=$VENV
    if [[ -x $VENV/bin/python && -e $VENV/bin/activate ]]; then # false for conda and containers
        ready="source $(printf %q "$VENV/bin/activate")"
    fi
    say "ready: $ready"
fi
