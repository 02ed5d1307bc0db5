"""Compute: where models run."""
