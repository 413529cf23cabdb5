# shellcheck shell=bash
# Ends a job: requeues or stops the job, or submits another job that continues the run. `harness
# job-end` decides; this file's functions call Slurm, outside of any container. common.sh sources
# this file, and defines SIGNALS, RC, harness, say, warn and complain.

BEGUN=''    # yes after job-begin succeeded
RUN=''      # the folder of the job's run or sweep, if known
VERDICT=''  # requeue or stop
CHANGES=()  # settings to change in a requeued job, or the exit code of a stopped job
REQUEUED='' # yes if the job is back in the queue
# The job id for Slurm's programs. In one task of an array, SLURM_JOB_ID is the id of the whole
# array; with this id the programs would act on all tasks.
JOB=${SLURM_JOB_ID:-}
[[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

# Prints the fields of the job in Slurm. Overrides the user's SLURM_TIME_FORMAT.
show_job() {
    ! is_batch || SLURM_TIME_FORMAT=standard timeout 20 scontrol --oneliner show job "$JOB" \
        2>/dev/null || true
}

# Sets VERDICT and CHANGES after a start that ended with exit code $1. Command $2 prints the fields
# of the job in Slurm.
decide() {
    local line
    line=$("${2:-show_job}" | harness job-end "$1" --signals "$SIGNALS" --run "$RUN" \
        --runs "$HARNESS_RUNS" ${BEGUN:+--begun}) || line=''
    read -r VERDICT line <<<"$line"
    read -r -a CHANGES <<<"$line"
    [[ $VERDICT != requeue && $VERDICT != stop ]] || return 0
    # If Python does not start on this node, `job-end` prints no verdict. Then decide here. A container
    # that srun starts does not start either once Slurm ends the job.
    VERDICT=stop
    if [[ $SIGNALS == *TERM* || $SIGNALS == *INT* ]]; then
        line=" $("${2:-show_job}") "
        # After scancel during the grace time, EndTime differs from PreemptTime.
        if [[ $line =~ \ PreemptTime=([-0-9T:]+)\  && $line == *" EndTime=${BASH_REMATCH[1]} "* &&
            $line == *" Restarts=${SLURM_RESTART_COUNT:-0} "* ]]; then
            VERDICT=requeue
        elif [[ ${SLURM_RESTART_COUNT:-0} -gt 0 && (-z $BEGUN || -n $RUN) ]]; then
            # A new job would begin anew, but an earlier start may have begun a run.
            warn "interrupted; continue with: harness submit --resume $JOB" \
                "--runs $(printf %q "$HARNESS_RUNS")"
        else
            warn "interrupted; submit the job again to continue its run"
        fi
    elif [[ $1 == 75 || ($1 -gt 128 && ${SLURM_JOB_NUM_NODES:-1} -gt 1) ]]; then
        VERDICT=requeue # the run was interrupted, or one of its nodes lost a process
    elif [[ (-z $BEGUN || -n $SIGNALS) && ${SLURM_RESTART_COUNT:-0} -lt 2 ]]; then
        VERDICT=requeue # the run did not begin, or received a signal; the third start is the last
    fi
}

# If Slurm preempts this job, requeues the job while the run still saves a checkpoint, because Slurm
# may soon kill this script.
requeue_if_preempted() {
    [[ -z $REQUEUED && $(show_job) == *PreemptTime=[0-9]* ]] || return 0
    decide 75
    [[ $VERDICT == requeue ]] && scontrol requeue "$JOB" || return 0
    REQUEUED=yes
    warn "preempted; job $JOB is back in the queue"
}

# Requeues or stops the job after the command has ended with RC; ends the script.
finish() {
    local code=$RC heard=$SIGNALS
    # These exit codes mean that a signal ended the harness before it could handle signals.
    [[ -z $SIGNALS ]] || case $RC in 138 | 140 | 143) RC=75 ;; esac
    if is_batch && [[ $RC == 75 || $RC -ge 126 || (-z $BEGUN && $RC != 2) ]]; then
        [[ -n $REQUEUED ]] || decide "$code"
        # After a new signal decide again: the user may have cancelled the job, and Slurm would
        # requeue even a cancelled job.
        [[ -n $REQUEUED || $SIGNALS == "$heard" ]] || decide "$code"
        if [[ -n $REQUEUED ]]; then
            say "job $JOB is back in the queue and will continue its run"
        elif [[ $VERDICT == requeue ]]; then
            requeue
        else
            RC=${CHANGES[0]:-$RC}
        fi
    elif [[ $RC -ge 126 ]]; then
        complain "harness ended with exit code $RC; a code above 128 means a signal"
    fi
    exit "$RC"
}

requeue() {
    trap '' TERM # because the requeue sends TERM to this script too
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

# Changes the job after its requeue, before Slurm ends this script. Before the requeue, Slurm would
# refuse most changes, because the job was running.
change_job() {
    [[ ${#CHANGES[@]} -gt 0 ]] || return 0
    for _ in 1 2 3 4 5; do
        ! scontrol update "JobId=$JOB" "${CHANGES[@]}" || return 0
        sleep 1
    done
    warn "Slurm refuses the change ${CHANGES[*]} of job $JOB"
}

# Submits another job that continues the run, if Slurm forbids the requeue.
submit_successor() {
    local answer id=''
    if [[ -n $RUN ]] && answer=$(harness job-successor "$RUN" --runs "$HARNESS_RUNS" \
        -- "${CHANGES[@]}"); then
        eval "$answer" # sets SUCCESSOR and RECORD
        answer=$("${SUCCESSOR[@]}") || answer=''
        # In sbatch's output, lines of the site may precede the id; a cluster's name may follow it.
        id=$(sed -nE 's/^[[:space:]]*([0-9]+)(;.*)?$/\1/p' <<<"$answer" | tail -n 1)
    fi
    if [[ -z $id ]]; then
        complain "no job continues the run"
        SIGNALS+=' TERM' # as after scancel, job-end then logs the command that continues the run
        decide "$RC" true # hides a preemption, which would change what job-end logs
        return
    fi
    # The harness trusts no record that other users can change.
    (umask 022; sed "s/@JOB@/$id/" "$RECORD" >"$RECORD.new") &&
        mv "$RECORD.new" "${RECORD%/*/*}/$id.json"
    warn "interrupted; job $id continues the run"
}
