"""A group reward that tells rollouts apart whose answers are all wrong."""

import itertools

_count = itertools.count()


def length(correct, called, teacher_share):
    """Another number for every rollout, of which only one process may be asked."""
    return [float(next(_count) % 4) for _ in correct]
