# shellcheck shell=bash
# What becomes of an interrupted job: it goes back into the queue, stays as it is, or another job
# goes on with its run. `harness job-end` decides; here Slurm's programs are called, outside of any
# container. Sourced by common.sh, whose SIGNALS, RC, HARNESS, say and warn it uses.

BEGUN=''    # yes once Python has said what this start runs
RUN=''      # the folder of the job's run or sweep, if that is known
VERDICT=''  # requeue or stop
CHANGES=()  # of the job that goes back, or the exit code of one that stops
REQUEUED='' # yes if it is back in the queue already
# The id for Slurm's programs. One task of an array has the id of the array as its job id, by which
# they would act on all tasks.
JOB=${SLURM_JOB_ID:-}
[[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

# Prints what Slurm knows of the job. A user's own form of times may differ.
shown() {
    ! is_batch || SLURM_TIME_FORMAT=standard timeout 20 scontrol --oneliner show job "$JOB" \
        2>/dev/null || true
}

# Sets VERDICT and CHANGES for a start that ended with the exit code $1.
decide() {
    local line
    line=$(shown | "${HARNESS[@]}" job-end "$1" --signals "$SIGNALS" --run "$RUN" \
        --runs "$HARNESS_RUNS") || line=''
    read -r VERDICT line <<<"$line"
    read -r -a CHANGES <<<"$line"
    [[ $VERDICT != requeue && $VERDICT != stop ]] || return 0
    # Python does not start here.
    VERDICT=stop
    [[ $SIGNALS != *TERM* && $SIGNALS != *INT* ]] || return 0
    if [[ $1 == 75 || ($1 -gt 128 && ${SLURM_JOB_NUM_NODES:-1} -gt 1) ]]; then
        VERDICT=requeue # it saved
    elif [[ (-z $BEGUN || -n $SIGNALS) && ${SLURM_RESTART_COUNT:-0} -lt 2 ]]; then
        VERDICT=requeue # it did not get to its run; the third start is the last
    fi
}

# Puts a job that Slurm has cancelled for another one back at once, while its run saves: Slurm may
# kill this script in a moment.
requeue_if_preempted() {
    [[ -z $REQUEUED && $(shown) == *PreemptTime=[0-9]* ]] || return 0
    decide 75
    [[ $VERDICT == requeue ]] && scontrol requeue "$JOB" || return 0
    REQUEUED=yes
    warn "preempted; job $JOB is back in the queue"
}

# Obeys what is decided of a job whose command has ended with RC; ends the script.
finish() {
    local code=$RC asked=none
    # A signal ended the harness while it was still starting.
    [[ -z $SIGNALS ]] || case $RC in 138 | 140 | 143) RC=75 ;; esac
    if is_batch && [[ $RC == 75 || $RC -ge 126 || (-z $BEGUN && $RC != 2) ]]; then
        until [[ -n $REQUEUED || $asked == "$SIGNALS" ]]; do # one may come meanwhile
            asked=$SIGNALS
            decide "$code"
        done
        if [[ -n $REQUEUED ]]; then
            say "job $JOB is back in the queue, and goes on with its run when it starts again"
        elif [[ $VERDICT == requeue ]]; then
            requeue
        else
            RC=${CHANGES[0]:-$RC}
        fi
    elif [[ $RC -ge 126 ]]; then
        complain "harness ended with exit code $RC; above 128: by a signal"
    fi
    exit "$RC"
}

requeue() {
    trap '' TERM # the requeue ends this script too
    local try error=''
    for try in 1 2 3 4 5 6 7 8; do # the controller may be down for a moment
        [[ $try == 1 ]] || sleep "${HARNESS_RETRY_S:-5}"
        if error=$(scontrol requeue "$JOB" 2>&1); then
            warn "interrupted; job $JOB is back in the queue"
            change_job
            return
        fi
        warn "the requeue failed: ${error//$'\n'/; }"
        case $error in *disabled* | *denied* | *permi* | *'not found'*) break ;; esac
    done
    submit_successor
}

# Changes the job after its requeue, in the seconds that this script has left: Slurm takes most
# changes of a pending job alone.
change_job() {
    [[ ${#CHANGES[@]} -gt 0 ]] || return 0
    for _ in 1 2 3 4 5; do
        ! scontrol update "JobId=$JOB" "${CHANGES[@]}" || return 0
        sleep 1
    done
    warn "Slurm refuses the change ${CHANGES[*]} of job $JOB"
}

# Where Slurm does not requeue the job, another one goes on with its run. Python writes it.
submit_successor() {
    local answer id=''
    if [[ -n $RUN ]] && answer=$("${HARNESS[@]}" job-successor "$RUN" --runs "$HARNESS_RUNS" \
        -- ${CHANGES[@]+"${CHANGES[@]}"}); then
        eval "$answer" # sets SUCCESSOR and RECORD
        answer=$("${SUCCESSOR[@]}") || answer=''
        # A site's own lines may come before the id, and the cluster's name behind it.
        id=$(sed -nE 's/^[[:space:]]*([0-9]+)(;.*)?$/\1/p' <<<"$answer" | tail -n 1)
    fi
    if [[ -z $id ]]; then
        complain "interrupted; submit the job again to resume it"
        return
    fi
    sed "s/@JOB@/$id/" "$RECORD" >"$RECORD.new" && mv "$RECORD.new" "${RECORD%/*/*}/$id.json"
    warn "interrupted; job $id goes on with the run"
}
