"""The making of the embedded model: its training, the figures of its card, and the baselines beside them."""
