"""`python -m src.cli.extract_trace_nexttok_dec`: workflow A of the usage document."""

from decision_traces.cli.main import run_named

if __name__ == "__main__":
    run_named("nexttok")
