"""`python -m src.cli.finetune_csqa_enc`: step 1 of workflow C of the usage document."""

from decision_traces.cli.main import run_named

if __name__ == "__main__":
    run_named("finetune")
