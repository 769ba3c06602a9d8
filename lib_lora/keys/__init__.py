"""Names to names: canonical layer keys and the dialects of files and models. Imports no torch."""
