"""The embedded host: Train and Generate without a webui, on any SD1 checkpoint."""
