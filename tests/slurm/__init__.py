"""Tests of jobs under Slurm; some start a real Slurm on this machine."""
