"""Finding a model's structure by running it once and watching: no table of families."""
