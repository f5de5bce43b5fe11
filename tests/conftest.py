"""Two depths of hypothesis: `fast` by default, `full` in the long tier (`--hypothesis-profile=full`)."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadline: the first example of many tests pays for an import or a thread pool.
settings.register_profile("fast", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("full", max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fast")
