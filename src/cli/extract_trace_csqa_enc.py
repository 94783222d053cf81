"""`python -m src.cli.extract_trace_csqa_enc`: step 2 of workflow C of the usage document."""

from decision_traces.cli.csqa_enc import main

if __name__ == "__main__":
    main()
