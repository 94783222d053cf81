"""The certificate: a run checks itself on its first rows before it writes anything."""
