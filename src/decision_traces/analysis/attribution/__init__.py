"""Direct logit attribution: what each part of a model adds to a lead."""
