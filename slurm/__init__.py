"""SLURM and submitit: clusters, sweeps, jobs. Knows nothing of pixels."""
