"""The inner parts of the embedded data set `tinyworld`: its words, its commonplaces and its kinds of item."""
