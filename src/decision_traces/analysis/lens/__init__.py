"""The logit lens and what follows from it: lens by choice, decision depth."""
