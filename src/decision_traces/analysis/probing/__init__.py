"""Linear probes on the states of every depth."""
