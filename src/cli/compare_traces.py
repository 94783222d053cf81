"""`python -m src.cli.compare_traces RUN`: right answers against wrong ones."""

from decision_traces.cli.compare import main

if __name__ == "__main__":
    main()
