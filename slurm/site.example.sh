#!/usr/bin/env bash
# Your site's settings. Copy this file to slurm/site.sh, which git ignores, and uncomment what you
# need. Every job script reads it on the compute node, and `bash slurm/common.sh --setup` on the
# login node. Settings that sbatch itself needs stand at the end.
# shellcheck disable=SC2034  # common.sh reads them

# Modules. Batch shells at some sites lack the `module` command: the first line brings it.
# source /etc/profile.d/modules.sh
# module load python/3.12

# The interpreter that makes the virtual environment: 3.11, 3.12 or 3.13.
# HARNESS_PYTHON=python3.12

# The virtual environment; the project's .venv by default. One that you made yourself is used as
# it is. A GPU install takes some gigabytes: choose another place where home folders are small.
# HARNESS_VENV=/project/$USER/harness-venv

# gpu installs the CUDA libraries, none leaves them out. By default they are installed where an
# NVIDIA driver or, on a login node, a GPU in the cluster is found.
# HARNESS_EXTRA=gpu

# The dataset's folder, and where runs are written; the project's runs/ by default.
# export HARNESS_DATA=/project/$USER/imdb
# export HARNESS_RUNS=/project/$USER/runs

# Scratch on the node's own disk, for temporary files and pip's cache.
# export TMPDIR=/scratch/$USER
# export PIP_CACHE_DIR=/scratch/$USER/pip

# The login node as your laptop knows it, for the tunnel to TensorBoard; by default the host that a
# job was submitted on.
# export HARNESS_LOGIN=$USER@login.cluster.edu

# How often a job puts itself back into the queue; 20 by default.
# HARNESS_MAX_REQUEUES=20

# After how many minutes a run says that a GPU lies idle, for sites that end such jobs; 10 by
# default, 0 for never.
# export HARNESS_IDLE_WARNING_MIN=10

# A container: every Python command runs after these words. The image must see this project's
# folder; an environment inside the image is named with HARNESS_VENV.
# HARNESS_CONTAINER=(apptainer exec --nv --bind "$PROJECT" /images/python-3.12.sif)

# sbatch reads these where it is called, so run `source slurm/site.sh` there first, or set them
# in your ~/.bashrc. SBATCH_GRES=none is for a site without GPUs.
# export SBATCH_ACCOUNT=my-account
# export SBATCH_PARTITION=my-partition
# export SBATCH_GRES=none
