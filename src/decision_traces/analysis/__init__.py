"""From traces to decisions: functions from a `TraceStore` to result dataclasses with `.to_frame()`.

`lens`, `depth`, `attribution`, `choices`, `encoder_lens_by_choice` and `encoder_attribution` go through the model's own head;
`attention`, `answers`, `statistics`, `probe` and `calibration` need nothing but the run.
"""
