"""What runs on the GPUs: data order, networks, training, evaluation. Knows nothing of SLURM."""
