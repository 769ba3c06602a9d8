"""Training: one engine, from a job to a run folder to a file."""
