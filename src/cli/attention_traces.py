"""`python -m src.cli.attention_traces RUN`: what every head looks at."""

from decision_traces.cli.main import run_named

if __name__ == "__main__":
    run_named("attention")
