"""Right against wrong, one run against another."""
