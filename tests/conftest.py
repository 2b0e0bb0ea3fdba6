"""Hypothesis profiles. The variable HYPOTHESIS_PROFILE selects one; `thorough` draws many more cases."""

import os

from hypothesis import HealthCheck, settings

# No deadline: on a busy machine it fails tests for reasons that are not in the code.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("default"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
