"""`python -m src.cli.index_traces RUN --validate`."""

from decision_traces.cli.main import run_named

if __name__ == "__main__":
    run_named("index")
