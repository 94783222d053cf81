"""`python -m src.cli.lens_traces RUN`."""

from decision_traces.cli.main import run_named

if __name__ == "__main__":
    run_named("lens")
