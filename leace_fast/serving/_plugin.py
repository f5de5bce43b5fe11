"""The plugin for vLLM: what it hooks into, in each of its processes. Nothing is hooked into versions not tested."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from ._requests import ROW, choice_of, salted
from ._runners import READY, RUNNERS, TESTED, runner_of
from ._settings import KEY, Settings

_active = False


def activate() -> None:
    """Be ready to serve erased: the entry point that vLLM calls in each of its processes, any number of times.

    A server that is told of no erasers is left as it is. vLLM may call this late, from inside of `EngineCore.__init__`
    and `WorkerWrapperBase.init_worker`: only what is called after these is hooked into.

    Source: vLLM's group of entry points `vllm.general_plugins`.
    """
    global _active
    if _active:
        return
    _wrap("vllm.engine.arg_utils", "EngineArgs", "create_engine_config", _create_engine_config)
    if version() in TESTED:
        _wrap("vllm.v1.engine.input_processor", "InputProcessor", "process_inputs", _process_inputs)
        _wrap("vllm.v1.engine.core", "EngineCore", "preprocess_add_request", _preprocess_add_request)
        _wrap("vllm.v1.engine.core", "EngineCore", "_initialize_kv_caches", _initialize_kv_caches)
        _wrap("vllm.v1.worker.worker_base", "WorkerBase", "__init__", _init_worker)
    _active = True


def version() -> str:
    """The version of vLLM that is installed, without what names its build."""
    return str(importlib.import_module("vllm").__version__).partition("+")[0]


def _wrap(module: str, kind: str, name: str, around: Callable[..., Any]) -> None:
    """Put a function around a method: it is called with the method, then with its arguments."""
    owner = getattr(importlib.import_module(module), kind)
    method = getattr(owner, name)

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(method, *args, **kwargs)

    setattr(owner, name, wrapped)


def _create_engine_config(method: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    config = method(self, *args, **kwargs)
    settings = Settings.of(config.additional_config)
    if settings is not None:
        if version() not in TESTED:
            raise ValueError(f"{KEY}: vLLM {version()} was not tested with erasers, expected {', '.join(TESTED)}")
        runner_of(config)
        for entry in settings.erasers.values():
            entry.load()
    return config


def _settings_of(owner: Any) -> Settings | None:
    """The settings of what holds a configuration of vLLM, read once."""
    if not hasattr(owner, "_leace_fast"):
        owner._leace_fast = Settings.of(owner.vllm_config.additional_config)
    return owner._leace_fast


def _process_inputs(
    method: Callable[..., Any], self: Any, request_id: Any, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    settings = _settings_of(self)
    if settings is not None:
        try:
            choice_of(settings, getattr(params, "extra_args", None))
            if settings.by_request and kwargs.get("resumable"):
                raise ValueError(f"{KEY}: a request that is resumed cannot choose")
        except ValueError as error:
            invalid = importlib.import_module("vllm.exceptions").VLLMValidationError
            raise invalid(str(error), parameter=KEY) from error
    return method(self, request_id, prompt, params, *args, **kwargs)


def _initialize_kv_caches(method: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """After it each worker has loaded its model and run it: each must say that it erases."""
    done = method(self, *args, **kwargs)
    settings = _settings_of(self)
    if settings is not None:
        try:
            said = self.model_executor.collective_rpc(READY)
        except Exception as error:  # of whatever kind the executor makes of a method that is missing
            raise RuntimeError(f"{KEY}: a worker does not erase: the plugin is not active in it ({error})") from error
        if not said or any(each != str(settings) for each in said):
            raise RuntimeError(f"{KEY}: the workers erase by {said}, expected {settings}")
    return done


def _preprocess_add_request(method: Callable[..., Any], self: Any, request: Any) -> Any:
    settings = _settings_of(self)
    if settings is not None:
        params = request.sampling_params
        choice = choice_of(settings, getattr(params, "extra_args", None))
        request.cache_salt = salted(settings, choice, request.cache_salt)
        if params is not None:
            params.extra_args = {**(params.extra_args or {}), ROW: choice}
    return method(self, request)


def _init_worker(method: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    method(self, *args, **kwargs)
    settings = _settings_of(self)
    if settings is not None:
        RUNNERS[runner_of(self.vllm_config)](self, settings)
