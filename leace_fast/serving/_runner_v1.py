"""vLLM's model runner V1: erasers placed as the model is loaded, rows routed as a batch is prepared."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import numpy
import torch

from ..models import Identity
from ._requests import ROW, choice_of
from ._settings import NONE, Settings
from ._tables import Placed

READY = "leace_fast_ready"


def take_over(worker: Any, settings: Settings) -> None:
    """Let a worker erase what it serves; its methods are replaced on the object, before it loads its model."""
    load, warm_up = worker.load_model, worker.compile_or_warm_up_model

    def load_model(*args: Any, **kwargs: Any) -> None:
        load(*args, **kwargs)
        place(worker.model_runner, settings)

    def compile_or_warm_up_model(*args: Any, **kwargs: Any) -> Any:
        done = warm_up(*args, **kwargs)
        runner = worker.model_runner
        none = importlib.import_module("vllm.config").CUDAGraphMode.NONE  # a graph that is replayed shows no call
        with torch.inference_mode():
            runner.leace_fast.check_ran(lambda: runner._dummy_run(1, cudagraph_runtime_mode=none))
        setattr(worker, READY, lambda: str(settings))
        return done

    worker.load_model, worker.compile_or_warm_up_model = load_model, compile_or_warm_up_model


def place(runner: Any, settings: Settings) -> None:
    """Put the erasers on the model of a runner, and let it route the rows of each batch.

    Raises:
        ValueError: they were fitted on another model, or do not fit this one.
    """
    scrubbers = {name: entry.load() for name, entry in settings.erasers.items()}
    served = Identity.of(SimpleNamespace(config=runner.model_config.hf_config))
    for name, scrubber in scrubbers.items():
        if different := scrubber.identity.differences(served):
            raise ValueError(
                f"the erasers {name!r} were fitted on another model than is served: {'; '.join(different[:6])}"
            )
    choices = [
        {site: eraser.scaled(strength) for site, eraser in scrubbers[name].items()}
        for name, strength in settings.choices
    ]
    default = -1 if settings.default == NONE else choice_of(settings, None)
    model = runner.get_model()
    placed = runner.leace_fast = Placed(
        model, choices, runner.max_num_tokens, default, lambda site: _served_name(model, site)
    )
    if settings.by_request:
        _route_each_batch(runner, placed)


def _served_name(model: Any, site: str) -> str:
    """What vLLM calls a module of transformers, by the names that it loads weights under."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    named = [] if mapper is None else mapper.apply_list([f"{site}.weight"])
    return named[0].removesuffix(".weight") if named else site


def _route_each_batch(runner: Any, placed: Placed) -> None:
    prepare = runner._prepare_inputs
    host = torch.empty(runner.max_num_tokens, dtype=torch.int64, pin_memory=placed.rows.is_cuda)
    known: dict[str, tuple[Any, int]] = {}

    def choice(request: str) -> int:
        params = runner.requests[request].sampling_params
        if request not in known or known[request][0] is not params:
            row = placed.default if params is None else (params.extra_args or {}).get(ROW)
            if row is None:
                raise RuntimeError(
                    f"leace_fast: the request {request} came past the engine's door, with no salt of its own"
                )
            known[request] = params, row
        return known[request][1]

    def _prepare_inputs(scheduled: Any, tokens: numpy.ndarray) -> Any:
        for gone in scheduled.finished_req_ids:
            known.pop(gone, None)
        batch = runner.input_batch
        chosen = numpy.array([choice(request) for request in batch.req_ids[: batch.num_reqs]], dtype=numpy.int64)
        rows = host[: int(tokens.sum())]
        rows.numpy()[:] = numpy.repeat(chosen, tokens)
        placed.route(rows)
        return prepare(scheduled, tokens)

    runner._prepare_inputs = _prepare_inputs
