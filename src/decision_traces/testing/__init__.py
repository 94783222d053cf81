"""Tiny models, tiny runs and strategies for tests, of this package and of others."""
