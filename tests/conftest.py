"""One thread, and two depths of hypothesis: `fast`, and `full` in the long tier (`--hypothesis-profile=full`)."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Before torch is imported: on a busy machine its threads wait for each other, ten times longer than they work here.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: the first example of many tests pays for an import or a thread pool.
settings.register_profile("fast", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("full", max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fast")
