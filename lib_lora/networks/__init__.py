"""Network types as pure torch algebra: no files, no device policy, no host."""
