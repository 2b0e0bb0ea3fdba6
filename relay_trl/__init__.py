"""A small model that calls a large one for the tokens it needs: training, evaluation and serving on top of TRL."""

__version__ = "0.1.0"


def __getattr__(name: str):
    # Loaded on first use, so that `import relay_trl` stays light.
    if name == "RelayPipeline":
        from .serving.pipeline import RelayPipeline

        return RelayPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
