"""`python -m src.cli.compare_traces RUN`: right answers against wrong ones."""

from decision_traces.cli.main import run_named

if __name__ == "__main__":
    run_named("compare")
