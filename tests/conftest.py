"""One thread, and two depths of hypothesis: `fast`, and `full` in the long tier (`--hypothesis-profile=full`)."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported: on a busy machine its threads wait for each other, ten times longer than they work here.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Run by test_interpreted.py, under Triton's interpreter and in a process of their own.
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["triton/interpreted/*"]

# No deadline: the first example of many tests pays for an import or a thread pool.
settings.register_profile("fast", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("full", max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fast")


@pytest.fixture(params=["kernels", "torch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the compiled kernels, and again as where they are absent."""
    from leace_fast._ops import Extension
    from leace_fast._ops import operators as ops

    if request.param == "torch":
        monkeypatch.setattr(ops, "EXTENSION", Extension(False, "switched off by a test"))
    elif not ops.EXTENSION.present:
        pytest.skip(f"extension: {ops.EXTENSION.reason}")
    return request.param
