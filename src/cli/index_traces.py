"""`python -m src.cli.index_traces RUN --validate`."""

from decision_traces.cli.index import main

if __name__ == "__main__":
    main()
