"""Folders that this package makes: built beside their place, locked, exchanged at once, removed only where proved ours."""
