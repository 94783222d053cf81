"""The files of a run folder, for whoever reads and whoever writes: JSON, tables, Zarr, checksums, places."""
