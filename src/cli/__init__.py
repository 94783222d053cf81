"""The documented entry points; the commands themselves live in `decision_traces.cli`."""
