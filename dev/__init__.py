"""What maintainers run from a clone, and no wheel holds: the table of architectures, the training of the demo model."""
