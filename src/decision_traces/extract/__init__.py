"""Extraction: the one loop over blocks, and each workflow as a small declaration on top of it."""
