"""Models: loading them, and finding their inner path by probing rather than by name."""
