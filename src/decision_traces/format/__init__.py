"""The format of a run folder: arrays, columns, meta and file names. No torch, no input or output."""
