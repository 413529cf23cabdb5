#!/usr/bin/env bash
#SBATCH --job-name=lstm
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=02:00:00
#SBATCH --output=logs/%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@90
# In a job, this script is a copy in Slurm's spool folder; squeue shows the original path.
home=$(dirname "$0")/..
[[ -f $home/slurm/common.sh ]] || home=${HARNESS_HOME:-$(unset "${!SQUEUE_@}" &&
    timeout 20 squeue -h -j "$SLURM_JOB_ID" -o %o | sed -n 's|/slurm/[^/]*\.sh.*||p' | tail -n 1)}
source "${home:-$SLURM_SUBMIT_DIR}/slurm/common.sh" || { echo "harness: set HARNESS_HOME to the project" >&2; exit 2; }
supervise train "$PROJECT/jobs/lstm.toml" "$@"
