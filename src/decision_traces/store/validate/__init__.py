"""Checking a run folder from the disk alone."""
