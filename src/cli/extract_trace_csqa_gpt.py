"""`python -m src.cli.extract_trace_csqa_gpt`: workflow B of the usage document."""

from decision_traces.cli.main import run_named

if __name__ == "__main__":
    run_named("csqa-dec")
