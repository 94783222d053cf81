"""Which of transformers' model classes can be traced: every class built tiny, traced, checked."""
