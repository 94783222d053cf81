"""`python -m src.cli.extract_traces`: any texts through any model."""

from decision_traces.cli.extract import main

if __name__ == "__main__":
    main()
