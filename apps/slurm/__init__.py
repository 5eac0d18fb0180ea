"""SLURM's own commands, for what Parsl does not do: the driver as a job, jobs by name, nothing left behind."""
