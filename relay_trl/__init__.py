"""A small model that calls a large one for the tokens it needs: training, evaluation and serving on top of TRL."""

__version__ = "0.1.0"
