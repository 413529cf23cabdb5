#!/usr/bin/env bash
# What all job scripts share: the site's settings, the virtual environment, the run.
#
#   bash slurm/common.sh --setup    make the environment, get the data, on a login node
#
# Works with bash 3.2 (macOS) and later, so an empty array is expanded as ${a[@]+"${a[@]}"}.

set -euo pipefail

PROJECT=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# `--export=NONE` drops these two.
export PATH HOME=${HOME:-~}

SIGNALS='' # the names of those that this script received

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
OF_SUBMISSION=(HARNESS_VENV HARNESS_RUNS HARNESS_DATA XDG_CACHE_HOME KERAS_HOME)
SUBMITTED=()
for name in "${OF_SUBMISSION[@]}"; do SUBMITTED+=("${!name:-}"); done
if [[ -f $PROJECT/slurm/site.sh ]]; then
    set +u # module systems read variables that are unset
    # shellcheck source=slurm/site.example.sh
    source "$PROJECT/slurm/site.sh" || warn "slurm/site.sh ended with status $?; the job goes on"
    set -u
fi

# Settles what the site and the submission say of the same.
read_site() {
    local i name
    if [[ -n ${HARNESS_SNAPSHOT:-} ]]; then
        # The submission's settings win, but only site.sh can name a container's environment.
        for i in "${!OF_SUBMISSION[@]}"; do
            name=${OF_SUBMISSION[i]}
            [[ $name != HARNESS_VENV || ${#HARNESS_CONTAINER[@]} == 0 ]] || continue
            [[ -z ${SUBMITTED[i]} ]] || export "$name=${SUBMITTED[i]}"
        done
    fi
    VENV=${HARNESS_VENV:-$PROJECT/.venv}
    [[ $VENV == /* ]] || VENV=$PROJECT/$VENV
}

AT_STAKE='any user who reaches the ports of your nodes could act as you and read and write your'
AT_STAKE+=" files, because TensorFlow's servers have no login"

# Refuses one model on several nodes without the site's word, before anything else is done. The
# rule and its words are those of harness/files/trusted_network.py.
need_trusted_network() {
    # As Python sees it: what site.sh sets without export stays in this shell.
    [[ ${SLURM_JOB_NUM_NODES:-1} -gt 1 && $(printenv HARNESS_TRUSTED_NETWORK) != 1 ]] || return 0
    [[ -z ${SLURM_GPUS:-} ]] || warn "--gpus=$SLURM_GPUS beside the --gres of the script asks for" \
        "several nodes; for one node: sbatch --gres=gpu:$SLURM_GPUS"
    complain "one model on $SLURM_JOB_NUM_NODES nodes: $AT_STAKE; use one node, or, if nobody" \
        "else reaches them, export HARNESS_TRUSTED_NETWORK=1 in slurm/site.sh, and source that file"
    exit 2
}

# Asks once, on a terminal of a cluster, whether its network is trusted; notes it in site.sh.
ask_for_trusted_network() {
    local site=$PROJECT/slurm/site.sh answer='' word=0
    [[ -t 0 && -t 2 ]] && command -v sbatch >/dev/null || return 0
    [[ -z ${HARNESS_TRUSTED_NETWORK:-} ]] || return 0
    say "one model can train on several nodes only in a network that nobody else reaches:" \
        "$AT_STAKE."
    read -r -p 'Can only people whom you trust reach the ports of the nodes? [y/N] ' answer || true
    [[ $answer != [yY]* ]] || word=1
    [[ ! -s $site || -z $(tail -c 1 "$site") ]] || echo >>"$site" # its last line is not ended
    echo "export HARNESS_TRUSTED_NETWORK=$word" >>"$site"
    say "noted in slurm/site.sh"
}

inside() { ${HARNESS_CONTAINER[@]+"${HARNESS_CONTAINER[@]}"} "$@"; }

STEP=() # srun, where a command is to run once on each of several nodes

# shellcheck source=slurm/caller.sh
source "$PROJECT/slurm/caller.sh"
# shellcheck source=slurm/environment.sh
source "$PROJECT/slurm/environment.sh"
# shellcheck source=slurm/requeue.sh
source "$PROJECT/slurm/requeue.sh"

# With an argument, for one model on all nodes of the job.
prepare() {
    forget_caller
    read_site
    [[ -z ${1:-} ]] || need_trusted_network
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
        # Making the environment takes minutes: what would refuse the job then refuses it now.
        [[ -z ${1:-} ]] || is_ready "${LOCKS[@]}" || need_trusted_network
        ensure_venv "${LOCKS[@]}"
        mkdir -p "$PROJECT/logs" # older versions of sbatch do not make it
    fi
    unset PYTHONHOME
    export PYTHONPATH=$PROJECT # this script's own code, whatever is installed
    export HARNESS_RUNS="${HARNESS_RUNS:-$PROJECT/runs}"
    HARNESS=(${HARNESS_CONTAINER[@]+"${HARNESS_CONTAINER[@]}"} "$VENV/bin/harness")
    ! is_batch || prepare_batch
    ON_NODES=(${STEP[@]+"${STEP[@]}"} "${HARNESS[@]}") # once on each node of the job
}

# What a Slurm job needs beyond a local run.
prepare_batch() {
    local log name asked=()
    for name in USR1 USR2 TERM; do
        # Without a trap, a time limit's warning this early would end the job for good.
        # shellcheck disable=SC2064
        trap "SIGNALS+=' $name'" $name
    done
    trap "SIGNALS+=' TERM'; requeue_if_preempted" TERM
    export HARNESS_MAX_REQUEUES="${HARNESS_MAX_REQUEUES:-20}"
    log=$(readlink "/proc/$$/fd/1") || log=''
    [[ ! -f $log ]] || export HARNESS_LOG=$log
    # Each node that can't do what the job was promised gets a line in it: its name, and why.
    export HARNESS_NODE_FAULTS=$HARNESS_RUNS/.submissions/node-faults-$FIRST_JOB
    mkdir -p "${HARNESS_NODE_FAULTS%/*}" || unset HARNESS_NODE_FAULTS
    UNBEGUN_STARTS=$HARNESS_RUNS/.submissions/unbegun-$SLURM_JOB_ID
    export HARNESS_OFFLINE=1 # compute nodes often have no network; a download would only time out
    if [[ ${SLURM_JOB_NUM_NODES:-1} -gt 1 ]]; then
        # srun does not inherit the CPUs from sbatch nor, at some sites, the environment.
        STEP=(srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES"
            --ntasks-per-node=1 --mem=0 --export=ALL --kill-on-bad-exit=0 --wait=60
            ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"})
        HARNESS_NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tr '\n' ' ')
        export HARNESS_NODES
    fi
    for name in SLURM_GPUS SLURM_GPUS_PER_NODE SLURM_GPUS_PER_TASK SLURM_GPUS_PER_SOCKET; do
        [[ -z ${!name:-} ]] || asked+=("$name=${!name}")
        unset "$name" # for srun: a step without them has all GPUs of its job
    done
    # The first line of the log: what Slurm gave the job.
    env ${asked[@]+"${asked[@]}"} "${HARNESS[@]}" job-begin || [[ $? != 2 ]] || exit 2
}

# Whether this script is a Slurm job, or the user's own job script calls it. Slurm runs it from a
# copy in a spool folder. In an interactive allocation it is none, and several runs may share its id;
# one that a notebook server keeps is a batch job, but its terminals are no batch script.
is_batch() { [[ -n ${SLURM_JOB_ID:-} ]] && { ! is_called || is_in_batch_script; }; }
is_called() { [[ $(dirname "$0") -ef $PROJECT/slurm ]]; }
is_in_batch_script() { [[ ${ENVIRONMENT:-} == BATCH && -z ${SLURM_STEP_ID:-} && ! -t 0 && ! -t 2 ]]; }

# Whether the option $1 is among the other arguments.
has_option() {
    local option=$1 argument
    shift
    for argument; do
        case $argument in "$option" | "$option="*) return 0 ;; esac
    done
    return 1
}

# Prints the value of the option $1 in the other arguments; of several, the last. Fails if it is not
# there.
value_of() {
    local option=$1 argument before='' value=''
    has_option "$@" || return 1
    shift
    for argument; do
        case $argument in "$option="*) value=${argument#*=} ;; esac
        [[ $before != "$option" ]] || value=$argument
        before=$argument
    done
    echo "$value"
}

# Prints the folder of the runs of the job file $1, which may give a name to the job.
folder_of() {
    local name
    name=$(sed -n "/^ *\[/q; s/^name *= *[\"']\([^\"']*\).*/\1/p" "$1" 2>/dev/null | head -n 1)
    [[ -n $name ]] || name=${1##*/}
    echo "$HARNESS_RUNS/${name%.toml}"
}

# Runs the command given and passes signals on to it; sets RC to its exit code and SIGNALS to the
# signals that came. It runs in the background, since a trap waits for a command in the foreground.
run_child() {
    local child='' fresh status stopping=TERM
    RC=127
    [[ $1 != srun ]] || stopping=USR2 # at a TERM it would kill its step at once
    # A child in the background ignores INT by default, so it gets TERM instead.
    # shellcheck disable=SC2064 # the traps outlive this function and its variables
    trap "pass_on INT $stopping" INT
    # shellcheck disable=SC2064
    trap "pass_on TERM $stopping" TERM
    trap 'pass_on USR1 USR1' USR1
    trap 'pass_on USR2 USR2' USR2
    "$@" &
    child=$!
    [[ -z $SIGNALS ]] || kill -s "$stopping" "$child"
    while fresh=''; do
        status=0
        wait "$child" || status=$?
        # A signal ends `wait` early; 127 means that an earlier turn already has the status.
        [[ $status == 127 && $RC != 127 ]] || RC=$status
        [[ -n $fresh ]] || break
    done
    # Killed by the signal: it was still starting, so there was no work to save.
    UNBEGUN=''
    [[ -z $SIGNALS ]] || case $RC in 138 | 140 | 143) RC=75 UNBEGUN=yes ;; esac
}

# Passes on only the first signal of a kind, since Slurm and users repeat them.
pass_on() {
    fresh=1
    [[ " $SIGNALS " != *" $1 "* ]] || return 0
    SIGNALS+=" $1"
    [[ -z ${child:-} ]] || kill -s "$2" "$child" 2>/dev/null || true
    [[ $1 != TERM ]] || ! is_batch || requeue_if_preempted
}

# Runs the command given, passes signals on to it, requeues the job if need be, ends the script.
run_to_end() {
    local num_faults
    num_faults=$(num_faults)
    run_child "$@"
    [[ -n $UNBEGUN ]] || ! is_batch || rm -f "$UNBEGUN_STARTS"
    if is_batch && is_faulty_too_often "$num_faults"; then
        complain "not requeued: $(faulty_in_a_row | paste -s -d ' ' -) were at fault one after another"
        RC=1
    elif is_batch && [[ -n $SIGNALS ]] && can_go_on; then
        requeue
    elif is_batch && { can_go_on || [[ $RC == 137 ]]; }; then
        requeue_after_failure
    elif [[ $RC -ge 126 ]]; then
        complain "harness ended with exit code $RC; above 128: by a signal"
    fi
    exit "$RC"
}

# Prints the name of this job's run, by which a requeued job finds it; fails outside of a job. A
# user's own script may call us several times, each time with other arguments.
run_name() {
    is_batch || return 1
    local id=$JOB
    ! is_called || [[ $# == 0 ]] || id+=-$(printf '%s\0' "$@" | cksum | cut -d ' ' -f 1)
    echo "slurm-$id"
}

# Trains the job file $1, relative to the project, with the other arguments; ends the script.
run_job() {
    local job=$1 name='' spans=yes
    local -a options=() seeds=()
    shift
    [[ $job == /* ]] || job=$PROJECT/$job
    ! has_option --seeds "$@" || spans='' # one process starts several runs, each on one node
    prepare $spans
    ! name=$(value_of --runs "$@") || export HARNESS_RUNS=$name
    if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]] && ! has_option --seed "$@"; then
        # Seeds that are too large for an index are listed.
        read -r -a seeds <<<"${HARNESS_ARRAY_SEEDS:-}"
        name=$SLURM_ARRAY_TASK_ID
        [[ ${#seeds[@]} == 0 ]] || name=${seeds[name - 1]}
        options+=(--seed "$name")
    fi
    if name=$(value_of --run-id "$@"); then
        name=$(folder_of "$job")/$name
    elif name=$(run_name "$@"); then
        options+=(--run-id "$name")
    fi
    [[ -n $spans ]] && RUN=$name || ON_NODES=("${HARNESS[@]}")
    run_to_end "${ON_NODES[@]}" train "$job" ${options[@]+"${options[@]}"} "$@"
}

# Goes on with the run, or with the sweep if $1 says so, in the folder $2; ends the script.
run_resume() {
    local kind=$1 folder=$2 spans=yes
    shift 2
    # A sweep starts its workers' steps itself.
    [[ $kind == run ]] || spans=''
    prepare $spans
    [[ -n $spans ]] || ON_NODES=("${HARNESS[@]}")
    RUN=$folder
    run_to_end "${ON_NODES[@]}" resume "$folder" "$@"
}

# Runs the search of the job file $1 on the whole allocation; ends the script. All tasks of an array
# work at one search.
# `--join SWEEP` means `harness sweep join SWEEP`; --retrain, --show and --best likewise.
run_tune() {
    local argument name option job=${1:-} command=(tune) arguments=()
    for argument; do
        [[ $job == *.toml || $argument != *.toml ]] || job=$argument
        option=${argument%%=*}
        case $option in
            --join | --retrain | --show | --best)
                command=(sweep "${option#--}")
                [[ $argument != *=* ]] || arguments+=("${argument#*=}")
                ;;
            *) arguments+=("$argument") ;;
        esac
    done
    prepare
    ! name=$(value_of --runs "$@") || export HARNESS_RUNS=$name
    if [[ ${command[0]} == tune ]]; then
        if name=$(value_of --sweep-id "$@"); then
            name=$(folder_of "$job")/$name
        elif name=$(JOB=${SLURM_ARRAY_JOB_ID:-$JOB} run_name "$@"); then
            arguments+=(--sweep-id "$name")
        fi
        RUN=$name
    fi
    # On one node only: it starts its workers' steps itself.
    run_to_end "${HARNESS[@]}" "${command[@]}" ${arguments[@]+"${arguments[@]}"}
}

# Compares the runs given by path or pattern, or all, and writes the report; ends the script.
run_compare() {
    local name
    local -a options=()
    prepare
    ! name=$(value_of --runs "$@") || export HARNESS_RUNS=$name
    has_option --out "$@" || options=(--out "$HARNESS_RUNS/comparison")
    run_to_end "${HARNESS[@]}" compare ${options[@]+"${options[@]}"} "$@"
}

# Serves TensorBoard from this node to its owner; ends the script.
run_tensorboard() {
    prepare
    run_to_end "${HARNESS[@]}" tensorboard "$@"
}

# Proves this node by real runs, on one node of the allocation; ends the script.
run_doctor() {
    prepare
    # -P: the current folder may have tests of its own.
    run_to_end ${HARNESS_CONTAINER[@]+"${HARNESS_CONTAINER[@]}"} "$VENV/bin/python" -P -m tests.gpu "$@"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    [[ "$*" == --setup ]] || { complain "usage: bash slurm/common.sh --setup"; exit 2; }
    SETS_UP=yes
    prepare
    "${HARNESS[@]}" data fetch || warn "the full dataset is missing; until then, runs use a SAMPLE"
    ask_for_trusted_network
    say "ready: $VENV"
fi
