"""`python -m src.cli.attribution_traces RUN`."""

from decision_traces.cli.attribution import main

if __name__ == "__main__":
    main()
