"""`python -m src.cli.extract_traces`: any texts through any model."""

from decision_traces.cli.main import run_named

if __name__ == "__main__":
    run_named("extract")
