"""Tables and pictures of results: one drawing per result type. Needs no torch."""
