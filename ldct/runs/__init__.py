"""The run folder, its checkpoints and its W&B mirror."""
