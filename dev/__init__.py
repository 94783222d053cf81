"""What maintainers run from a clone, and no wheel holds: the table of architectures, golden runs, the demo model."""
