"""From traces to decisions: functions from a `TraceStore` to result dataclasses with `.to_frame()`.

`lens` and `attribution` go through the model's own head; `attention`, `comparison` and `probing` need nothing but the
run.
"""
