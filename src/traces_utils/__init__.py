"""The documented import path of the run reader."""
