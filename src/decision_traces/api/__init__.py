"""What Python users call: `trace` makes a run, `Run` reads, analyses and shows one; public by `decision_traces`."""
