"""`python -m src.cli.extract_trace_nexttok_dec`: workflow A of the usage document."""

from decision_traces.cli.nexttok import main

if __name__ == "__main__":
    main()
