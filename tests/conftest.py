"""Hypothesis profiles. `HYPOTHESIS_PROFILE=thorough` looks much longer; choose any registered one by that variable."""

import os

from hypothesis import HealthCheck, settings

# No deadline: on a busy machine it fails tests for reasons that are not in the code.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("default"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
