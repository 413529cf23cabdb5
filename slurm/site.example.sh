#!/usr/bin/env bash
# Settings of a site: copy this file to slurm/site.sh, which git ignores, and uncomment lines there.
# Job scripts source slurm/site.sh. Run `source slurm/site.sh` in each new shell.
# slurm/README.md, "Settings", explains each setting.
# shellcheck disable=SC2034  # common.sh reads the variables

# source /etc/profile.d/modules.sh                # if batch shells lack `module`
# module load python/3.12

# export HARNESS_PYTHON=python3.12                # Python 3.11 to 3.13; creates the environment
# export HARNESS_VENV=/project/$USER/harness-venv # folder of the environment; 6.6 GB with CUDA
# export HARNESS_EXTRA=gpu                        # installs the CUDA libraries; "none" omits them
# export HARNESS_DEVICES=cpu                      # default of --devices

# export HARNESS_DATA=/project/$USER/imdb         # folder of the dataset
# export HARNESS_DATA_OWNERS=datasets,hpcadmin    # users whose dataset you trust
# export HARNESS_RUNS=/project/$USER/runs         # folder of the runs
# export TMPDIR=/scratch/$USER                    # local disk of a node

# export HARNESS_TRUST_CODE=1                     # permits code that other users can change
# export HARNESS_TRUSTED_NETWORK=1                # permits training one model on several nodes
# export HARNESS_INTERFACE=eth1                   # network interface that connects the nodes
# export NCCL_SOCKET_IFNAME=ib0                   # if NCCL chooses the wrong network
# export NCCL_DEBUG=INFO

# export HARNESS_JOBS_ONLY=1                      # refuses training outside of jobs
# export HARNESS_MAX_REQUEUES=2                   # most successive requeues without a new step
# export HARNESS_STALL_MIN=10                     # minutes without progress until a run ends
# export HARNESS_IDLE_WARNING_MIN=10              # minutes until a warning of an idle GPU
# export HARNESS_STOP_S=60                        # seconds from a signal until a stuck run ends
# export HARNESS_LOGIN=$USER@login.cluster.edu    # login node for TensorBoard's tunnel

# HARNESS_CONTAINER=(apptainer exec --nv --bind "$PROJECT" /images/python-3.12.sif)  # runs Python

# Options of sbatch; SBATCH_GRES=none removes the option --gres of the scripts.
# export SBATCH_ACCOUNT=my-account
# export SBATCH_PARTITION=my-partition
# export SBATCH_GRES=gpu:a100:1
# export SBATCH_GRES=none SBATCH_GPUS_PER_NODE=a100:1
# export SBATCH_MEM_PER_GPU=16G                   # for harness submit only: the scripts have --mem
# export HARNESS_SBATCH_NEVER="gres mem"          # options that the site refuses
# export HARNESS_SBATCH_ALWAYS=--ntasks=1         # options that the site demands
