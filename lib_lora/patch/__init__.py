"""Patching: base weights changed by networks and brought back bit for bit."""
