"""Evaluation: methods, the runner that asks them, and the report on their answers."""
