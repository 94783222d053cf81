"""`python -m src.cli.extract_trace_csqa_gpt`: workflow B of the usage document."""

from decision_traces.cli.csqa_dec import main

if __name__ == "__main__":
    main()
