# shellcheck shell=bash
# What a job must not take for its own. sbatch passes on what Slurm told the shell that called it,
# such as one that srun started, and a job overwrites only what it has itself. Sourced by common.sh,
# whose is_called it uses.

forget_caller() {
    if ! is_called; then
        forget_callers_memory
    elif [[ ${ENVIRONMENT:-} != BATCH || -z ${SLURM_STEP_ID:-} ]] ||
        [[ $(timeout 20 scontrol show step "$SLURM_JOB_ID.$SLURM_STEP_ID" 2>&1) != *'not found'* ]]; then
        return 0
    fi
    # A batch script has no step.
    unset SLURM_STEPID "${!SLURM_STEP_@}" "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}"
}

# A job has memory by one option alone; of two, Slurm says which it is.
forget_callers_memory() {
    local job
    [[ -n ${SLURM_MEM_PER_NODE:-} && -n ${SLURM_MEM_PER_CPU:-}${SLURM_MEM_PER_GPU:-} ]] ||
        [[ -n ${SLURM_MEM_PER_CPU:-} && -n ${SLURM_MEM_PER_GPU:-} ]] || return 0
    job=$(timeout 20 scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null) || return 0
    case $job in
    *MinMemoryCPU=*) unset SLURM_MEM_PER_NODE SLURM_MEM_PER_GPU ;;
    *MemPerTres=*) unset SLURM_MEM_PER_NODE SLURM_MEM_PER_CPU ;;
    *MinMemoryNode=*) unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU ;;
    esac
}
