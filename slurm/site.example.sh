#!/usr/bin/env bash
# Your site's settings: copy this file to slurm/site.sh, which git ignores, and uncomment some.
# Job scripts source it; in each new shell of yours run `source slurm/site.sh`.
# slurm/README.md, "Settings", explains each setting.
# shellcheck disable=SC2034  # common.sh reads them

# source /etc/profile.d/modules.sh                # where batch shells lack `module`
# module load python/3.12

# export HARNESS_PYTHON=python3.12                # makes the environment: 3.11 to 3.13
# export HARNESS_VENV=/project/$USER/harness-venv # the environment; several GB with CUDA
# export HARNESS_EXTRA=gpu                        # with CUDA's libraries; none: without
# export HARNESS_DEVICES=cpu                      # --devices, where it is left out

# export HARNESS_DATA=/project/$USER/imdb         # the folder of the dataset
# export HARNESS_DATA_OWNERS=datasets,hpcadmin    # whose dataset may be read too
# export HARNESS_RUNS=/project/$USER/runs         # the folder of the runs
# export TMPDIR=/scratch/$USER                    # a node's own disk
# export PIP_CACHE_DIR=/scratch/$USER/pip

# export HARNESS_TRUST_CODE=1                     # code in files that others can change
# export HARNESS_TRUSTED_NETWORK=1                # one model on several nodes; read README first
# export HARNESS_INTERFACE=eth1                   # where the nodes of a job meet
# export NCCL_SOCKET_IFNAME=ib0                   # where NCCL chooses a wrong network
# export NCCL_DEBUG=INFO

# export HARNESS_JOBS_ONLY=1                      # refuse training outside of jobs
# export HARNESS_MAX_REQUEUES=2                   # starts without progress, less one
# export HARNESS_STALL_MIN=10                     # minutes without a step until a run ends
# export HARNESS_STOP_S=60                        # seconds for a device to answer a signal
# export HARNESS_LOGIN=$USER@login.cluster.edu    # the login node, for TensorBoard's tunnel

# HARNESS_CONTAINER=(apptainer exec --nv --bind "$PROJECT" /images/python-3.12.sif)  # runs Python

# sbatch's own settings; SBATCH_GRES=none takes back the --gres of the scripts.
# export SBATCH_ACCOUNT=my-account
# export SBATCH_PARTITION=my-partition
# export SBATCH_GRES=gpu:a100:1
# export SBATCH_GRES=none SBATCH_GPUS_PER_NODE=a100:1
# export SBATCH_MEM_PER_GPU=16G                   # for harness submit alone: the scripts have --mem
# export HARNESS_SBATCH_NEVER="gres mem"          # options that the site refuses
# export HARNESS_SBATCH_ALWAYS=--ntasks=1         # options that it wants of each job
