"""One module for each command of `python -m lib_lora`; each has `HELP`, `configure(parser)` and `run(args)`."""
