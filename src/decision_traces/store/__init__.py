"""The run folder: the only code that touches the disk format. Needs no torch."""
