"""Shard files: chunks of arrays with checksums. They know shapes and dtypes, not runs."""
