"""Copying what a forward pass computes into preallocated buffers, and proving that the copies are right."""
