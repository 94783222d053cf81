"""What the model decided: from logits to columns, vectorised and pure."""
