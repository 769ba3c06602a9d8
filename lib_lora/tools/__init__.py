"""Tools on files: merge, inspect."""
