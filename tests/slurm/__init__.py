"""A real Slurm on this machine, and the job scripts tried on it."""
