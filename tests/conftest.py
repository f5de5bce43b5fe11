"""One thread, the depths of hypothesis, the nightly tests of a change (`--nightly-of`), and tests of both backends."""

from __future__ import annotations

import importlib.util
import os

import nightly
import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported: on a busy machine its threads wait for each other, ten times longer than they work here.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# None holds tests. Those of the interpreter are run by test_interpreted.py, in a process of their own.
collect_ignore_glob = ["conftest.py", "*/conftest.py"]
if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob.append("triton_kernels/interpreted/*")
if importlib.util.find_spec("vllm") is None:  # run by `make test-serving`, in an environment of their own
    collect_ignore_glob.append("serving/engine/*")

# No deadline: the first example of many tests pays for an import or a thread pool. Tests that run others are quick.
for name, examples in {"full": 300, "quick": 25}.items():
    settings.register_profile(name, max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("full")

PLAN = pytest.StashKey[nightly.Plan]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nightly-of",
        metavar="REVISION",
        help="of the nightly tier, run what was touched since REVISION and a tenth (LEACE_FAST_NIGHTLY_PART=0..9, all)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if revision := config.getoption("--nightly-of", default=None):
        config.stash[PLAN] = plan = nightly.plan(revision)
        # The workers take the same part, also where the day ends meanwhile.
        os.environ[nightly.PART] = "all" if plan.part is None else str(plan.part)


def pytest_report_header(config: pytest.Config) -> str | None:
    return f"nightly: {config.stash[PLAN]}" if PLAN in config.stash else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if PLAN not in config.stash:
        return
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        taken = item.get_closest_marker("nightly") is None or config.stash[PLAN].takes(item.nodeid)
        (kept if taken else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


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
