"""`python -m src.cli.attention_traces RUN`: what every head looks at."""

from decision_traces.cli.attention import main

if __name__ == "__main__":
    main()
