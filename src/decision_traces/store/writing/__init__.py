"""Writing a run and the results on it: blocks, ledger, helper processes."""
