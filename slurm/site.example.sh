#!/usr/bin/env bash
# Your site's settings. Copy this file to slurm/site.sh, which git ignores, and uncomment what you
# need. Job scripts and `bash slurm/common.sh --setup` source it. In each new shell of yours, run
# `source slurm/site.sh`: sbatch and harness see what it exports, and read nothing from this file.
# Settings for sbatch itself are at the end.
# shellcheck disable=SC2034  # common.sh reads them

# Modules. At some sites, batch shells lack the `module` command: the first line provides it.
# source /etc/profile.d/modules.sh
# module load python/3.12

# The interpreter for the virtual environment: 3.11, 3.12 or 3.13.
# export HARNESS_PYTHON=python3.12

# The virtual environment; the project's .venv by default. One that you made yourself, with harness
# in it, is used as it is. A GPU install takes several gigabytes: choose another path if home folders
# are small.
# export HARNESS_VENV=/project/$USER/harness-venv

# gpu installs the CUDA libraries, none leaves them out. By default they are installed if this
# machine has an NVIDIA driver or, on a login node, if the cluster has GPUs.
# export HARNESS_EXTRA=gpu

# What --devices is by default: cpu on a cluster whose GPUs are not to be used.
# export HARNESS_DEVICES=cpu

# The dataset's folder, and the folder for runs; the project's runs/ by default.
# export HARNESS_DATA=/project/$USER/imdb
# export HARNESS_RUNS=/project/$USER/runs

# Whose dataset may be read, besides your own and root's: names or numbers of users. Whoever owns it
# could change its reviews or labels; a run's record then says that they are not the official ones.
# export HARNESS_DATA_OWNERS=datasets,hpcadmin

# 1: networks and callbacks of your own run although others can write to their files or folders, as
# where a group shares them: whoever can, runs code as you.
# export HARNESS_TRUST_CODE=1

# One model on several nodes (--nodes=2) is refused until this is 1. TensorFlow's servers have no
# login and listen on every interface: any user who reaches the ports of a job's nodes can act as
# the owner of the run, and read and write their files. Set it only where nobody else reaches them:
# nodes that are never shared, in a network of their own.
# export HARNESS_TRUSTED_NETWORK=1

# The interface by which the nodes of a job reach each other; by default the one that the name of a
# node leads to. The workers meet on this interface alone, so the names must lead there.
# export HARNESS_INTERFACE=eth1

# Scratch on the node's local disk, for temporary files and pip's cache.
# export TMPDIR=/scratch/$USER
# export PIP_CACHE_DIR=/scratch/$USER/pip

# The login node's name on your laptop, for the tunnel to TensorBoard; by default the host that the
# job was submitted from.
# export HARNESS_LOGIN=$USER@login.cluster.edu

# How many times a job may put itself back into the queue without a step, or a finished trial, in
# between; 2 by default, so the third start is the last. Ends with a step more do not count.
# export HARNESS_MAX_REQUEUES=2

# 1: what trains is refused outside of jobs, on the login node, without --here.
# export HARNESS_JOBS_ONLY=1

# After how many minutes without the end of a step, a batch or a compilation a run ends, to go on
# from its last checkpoint; 10 by default, 0 for never. Before the first step on a card whose
# kernels the driver compiles it is six times as long. On several nodes it is 1.5 by default from the
# first step on, since one worker that hangs keeps the others.
# export HARNESS_STALL_MIN=10

# After how many seconds a run that was told to stop ends, if its devices do not answer; 60 by
# default, 0 for never. Jobs are told 90 s before their time limit.
# export HARNESS_STOP_S=60

# The network between nodes with GPUs, where NCCL chooses a wrong one, and what NCCL says of it. A
# run's record holds all variables of NCCL.
# export NCCL_SOCKET_IFNAME=ib0
# export NCCL_DEBUG=INFO

# A container: every Python command is run by this command. The project's folder must be visible in
# it; for an environment inside the image, set HARNESS_VENV.
# HARNESS_CONTAINER=(apptainer exec --nv --bind "$PROJECT" /images/python-3.12.sif)

# Options of sbatch for all jobs, from the shell that calls it. SBATCH_GRES=none is for a site
# without GPUs; beside SBATCH_GPUS_PER_NODE, plain sbatch needs SBATCH_GRES=none as well.
# export SBATCH_ACCOUNT=my-account
# export SBATCH_PARTITION=my-partition
# export SBATCH_GRES=none
# export SBATCH_GRES=gpu:a100:1
# export SBATCH_GPUS_PER_NODE=a100:1
# export HARNESS_SBATCH_NEVER="gres mem"      # what the site refuses: never sent
# export HARNESS_SBATCH_ALWAYS=--ntasks=1     # what it wants of each job
# export SBATCH_MEM_PER_GPU=16G  # for harness submit alone: the scripts have --mem
