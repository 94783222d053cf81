"""Folders that this package makes: locked, exchanged at once, removed only where proved ours."""
