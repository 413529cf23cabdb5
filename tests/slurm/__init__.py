"""Tests of jobs under Slurm; some start a real Slurm cluster on this machine."""
