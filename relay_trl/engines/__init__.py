"""Engines: what turns a context into the next tokens. `base` has the protocol; one module per kind of engine."""
