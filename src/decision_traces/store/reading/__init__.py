"""Reading a run: `TraceStore` and what it is made of."""
