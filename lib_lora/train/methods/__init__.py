"""Kinds of training: what each trains, its loss, and the files it makes."""
