"""From traces to decisions: functions from a `TraceStore` to result dataclasses.

`results` holds the dataclasses and needs no torch; `lens` computes them with the model's own norm and unembedding.
"""
