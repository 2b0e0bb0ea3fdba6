"""The pair as one thing that people can call: an OpenAI-compatible server, and `RelayPipeline` in Python."""
