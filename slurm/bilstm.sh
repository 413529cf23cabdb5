#!/usr/bin/env bash
#SBATCH --job-name=bilstm
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=02:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@90

# Slurm runs a copy of this file from its spool folder; then the project is at or above the
# folder where sbatch was called. HARNESS_HOME overrides both.
at=$(cd "$(dirname "$0")" && pwd)
[[ -f $at/common.sh ]] || at=${SLURM_SUBMIT_DIR:-$PWD}
at=${HARNESS_HOME:-$at}
from=$at
until grep -qs '^name = "harness"' "$at/pyproject.toml"; do
    [[ $at == /* ]] || {
        echo "harness: no project at or above $from; run sbatch inside it or set HARNESS_HOME" >&2
        exit 2
    }
    at=${at%/*}
done
source "$at/slurm/common.sh"
run_job jobs/bilstm.toml "$@"
