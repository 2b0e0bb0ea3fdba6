"""Engines: they continue a context by new tokens. `base.py` has the protocol; every kind of engine has a module."""
