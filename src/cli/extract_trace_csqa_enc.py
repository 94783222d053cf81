"""`python -m src.cli.extract_trace_csqa_enc`: step 2 of workflow C of the usage document."""

from decision_traces.cli.main import run_named

if __name__ == "__main__":
    run_named("csqa-enc")
