"""`python -m src.cli.lens_traces RUN`."""

from decision_traces.cli.lens import main

if __name__ == "__main__":
    main()
