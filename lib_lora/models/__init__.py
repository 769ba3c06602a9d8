"""Models: the DiffusionModel port over diffusers modules and over ldm modules, and one small sampler."""
