"""Serves a student with its teacher: an OpenAI-compatible server, and `RelayPipeline` in Python."""
