# shellcheck shell=bash
# What becomes of an interrupted job: it goes back into the queue, stays cancelled, or another job
# goes on with its run. Sourced by common.sh, whose SIGNALS, RC, RUN, HARNESS, say and warn it uses.

MAX_FAULTY_NODES=2 # in a row, before a job stays failed: then it may not be the nodes
RUN=''             # the job's run or sweep, by its id or folder, if it has one alone
UNBEGUN=''         # yes if a signal ended the harness while it was still starting
PREEMPTED=''       # yes if it was cancelled for another job, requeued if it is back in the queue
# The id for Slurm's programs. One task of an array has the id of the array as its job id, by which
# they would act on all tasks.
JOB=${SLURM_JOB_ID:-}
[[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
FIRST_JOB=${HARNESS_FIRST_JOB:-${SLURM_JOB_ID:-}} # of the jobs that go on one after another
MORE_MEMORY=''     # in MB, that the job asks for from now on

# Whether the job can be resumed: it saved its state, or a process on one of several nodes died,
# and those on the others lived long enough to save.
can_go_on() {
    [[ $RC == 75 ]] || [[ $RC -ge 128 && ${SLURM_JOB_NUM_NODES:-1} -gt 1 ]]
}

# Whether Slurm has just cancelled the job to make room for another one (PreemptMode=CANCEL), and
# does not requeue it. If a user cancels it in its grace time, the two times differ.
is_preempted() {
    local known
    # A user's own form of times may differ from the one that is looked for.
    known=" $(SLURM_TIME_FORMAT=standard scontrol --oneliner show job "$JOB" 2>/dev/null) " || return 1
    [[ $known =~ \ PreemptTime=([-0-9T:]+)\  && $known == *" EndTime=${BASH_REMATCH[1]} "* &&
        $known == *" Restarts=${SLURM_RESTART_COUNT:-0} "* ]]
}

# Puts a preempted job back at once, while the run saves: Slurm may kill this script in a moment.
requeue_if_preempted() {
    [[ -z $PREEMPTED ]] && is_preempted || return 0
    PREEMPTED=yes
    if scontrol requeue "$JOB"; then
        PREEMPTED=requeued
        warn "preempted; job $JOB is back in the queue"
    fi
}

# Puts the job back into the queue, unless TERM or INT came: a cancelled job must stay cancelled,
# and a preempted one is back already.
requeue() {
    [[ $SIGNALS != *TERM* ]] || requeue_if_preempted
    if [[ $PREEMPTED == requeued ]]; then
        ask_for_more_memory
        return
    fi
    if [[ $SIGNALS == *INT* || ($SIGNALS == *TERM* && -z $PREEMPTED) ]] ||
        ! command -v scontrol >/dev/null; then
        warn "interrupted; submit or run the job again to resume it"
        return
    fi
    # A run counts its own requeues without a step; here are those of a job that got to no run.
    if [[ -n $UNBEGUN ]] && is_unbegun_too_often; then
        complain "interrupted while it started, for the last $HARNESS_MAX_REQUEUES times" \
            "(HARNESS_MAX_REQUEUES); not requeued again; see above why, or give more --time"
        return
    fi
    trap '' TERM # the requeue ends this script too
    local try error
    for try in 1 2 3 4 5 6 7 8; do # the controller may be down for a moment
        [[ $try == 1 ]] || sleep "${HARNESS_RETRY_S:-5}"
        if error=$(scontrol requeue "$JOB" 2>&1); then
            warn "interrupted; job $JOB is back in the queue"
            exclude_faulty_nodes
            ask_for_more_memory
            return
        fi
        case $error in *disabled* | *denied* | *permi*) break ;; esac
        warn "the requeue failed and is tried again: ${error//$'\n'/; }"
    done
    submit_successor "$error"
}

# Counts the starts of the job one after another that ended before there was anything to save.
is_unbegun_too_often() {
    local count
    echo >>"$UNBEGUN_STARTS" || return 1
    count=$(wc -l <"$UNBEGUN_STARTS")
    [[ $count -gt $HARNESS_MAX_REQUEUES ]]
}

# Puts a job back that failed without a signal, unless it gets no further; harness says which.
requeue_after_failure() {
    local verdict
    verdict=$("${HARNESS[@]}" job-end "$RC" --run "$RUN" --runs "$HARNESS_RUNS") ||
        { can_go_on && verdict=requeue; } || verdict=stop
    if [[ $verdict != requeue* ]]; then
        complain "harness ended with exit code $RC; not requeued, see above why"
        return
    fi
    MORE_MEMORY=${verdict#requeue}
    MORE_MEMORY=${MORE_MEMORY# }
    requeue
}

ask_for_more_memory() {
    [[ -z $MORE_MEMORY ]] || update_job "MinMemoryNode=$MORE_MEMORY" ||
        warn "Slurm does not give the job more memory; cancel it, and submit it with more --mem"
}

# Changes the job after its requeue, in the seconds that this script has left: Slurm takes most
# changes of a pending job alone.
update_job() {
    local try
    for try in 1 2 3 4 5; do
        [[ $try == 1 ]] || sleep 1
        ! scontrol update "JobId=$JOB" "$1" || return 0
    done
    return 1
}

# Where Slurm does not requeue the job, another one goes on with its run.
submit_successor() {
    local -a options=(--dependency="afterany:$JOB")
    local nodes
    warn "interrupted, and the requeue failed: $1"
    nodes=$(faulty_nodes | paste -s -d , -)
    [[ -z $nodes ]] || options+=(--exclude="$nodes")
    [[ -z ${MORE_MEMORY:-} ]] || options+=(--mem="${MORE_MEMORY}M")
    # Its failures are counted for the first job.
    if [[ -z $RUN ]] || ! env HARNESS_FIRST_JOB="$FIRST_JOB" "${HARNESS[@]}" submit --resume "$RUN" \
        --runs "$HARNESS_RUNS" -- "${options[@]}"; then
        [[ -z $RUN || ${#HARNESS_CONTAINER[@]} == 0 ]] ||
            warn "the container has no sbatch that works; submit the job's script again with" \
                "--run-id (--sweep-id of a search) ${RUN##*/}"
        complain "interrupted; submit the job again to resume it"
    fi
}

faulty_nodes() {
    [[ ! -f ${HARNESS_NODE_FAULTS:-} ]] || sed '/^$/d; s/ .*//' "$HARNESS_NODE_FAULTS" | sort -u
}

# Also of nodes that were at fault before.
num_faults() { grep -c . "${HARNESS_NODE_FAULTS:-}" 2>/dev/null || true; }

# Those since a start last ended without a new one, which leaves an empty line.
faulty_in_a_row() {
    awk '!NF { split("", row) } NF { row[$1] } END { for (node in row) print node }' \
        "$HARNESS_NODE_FAULTS" | sort
}

# Whether this start found a fault beyond the $1 known before, on one node too many in a row.
is_faulty_too_often() {
    if [[ $(num_faults) -gt ${1:-0} ]]; then
        [[ $(faulty_in_a_row | wc -l) -gt $MAX_FAULTY_NODES ]]
    else
        # A start that a signal ended before there was anything to save says nothing of its nodes.
        [[ ${1:-0} == 0 || -n $UNBEGUN ]] || echo >>"$HARNESS_NODE_FAULTS"
        return 1
    fi
}

# Keeps the job off the nodes that are at fault.
exclude_faulty_nodes() {
    local nodes excluded
    nodes=$(faulty_nodes | paste -s -d , -)
    [[ -n $nodes ]] || return 0
    excluded=$(scontrol show job "$JOB" | sed -n 's/.*ExcNodeList=\([^ ]*\).*/\1/p')
    [[ $excluded == '(null)' ]] || nodes=$excluded,$nodes
    if update_job "ExcNodeList=$nodes"; then
        warn "job $JOB will not run on $nodes again; tell your site"
    else
        warn "job $JOB may run on $nodes again: Slurm does not exclude them"
    fi
}
