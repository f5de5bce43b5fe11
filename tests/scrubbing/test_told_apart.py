"""What a checkpoint knows a call by: equal things alike in every process, and other things apart."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from leace_fast import Eraser, Moments, leace
from leace_fast.scrubbing._fingerprint import fingerprint
from leace_fast.scrubbing._told_apart import told_apart

ROOT = Path(__file__).parents[2]


def told(value: Any) -> str:
    return told_apart(value, "the value")


def functions(source: str) -> Any:
    """What `method` is in a module of this source, which is written anew and not installed."""
    space: dict[str, Any] = {"__name__": "written"}
    exec(textwrap.dedent(source), space)
    return space["method"]


VALUES = {
    "number": [1, 1.0, True, "1", b"1", None, complex(1), 2],
    "shape": [torch.zeros(2, 6), torch.zeros(3, 4), torch.zeros(2, 6, dtype=torch.float64), torch.zeros(12)],
    "later numbers": [torch.arange(1000), torch.arange(1000).where(torch.arange(1000) != 999, 0)],
    "array": [np.zeros(4), np.zeros((2, 2)), np.zeros(4, np.float32), np.arange(2000.0), -np.arange(2000.0)],
    "array of text": [np.array(["a", "b"]), np.array(["a", "c"]), np.array(["a", None], dtype=object)],
    "structure": [[1, 2], (1, 2), [[1], 2], [1, [2]], {"a": 1, "b": 2}, {"a": 2, "b": 1}, {1, 2}, [], (), {}],
    "layout": [torch.eye(3).to_sparse(), 2 * torch.eye(3).to_sparse(), torch.eye(3), torch.eye(3).to_sparse_csr()],
    "negative zero": [torch.tensor(0.0), torch.tensor(-0.0)],
    "quantised": [torch.quantize_per_tensor(torch.arange(4.0), scale, 0, torch.qint8) for scale in (0.1, 0.2)],
    "partial": [functools.partial(leace, ridge=value) for value in (1e-3, 2e-3)] + [leace],
    "moments": [Moments(2).update(torch.arange(4.0).view(2, 2) * scale) for scale in (1, 2)],
    "eraser": [Eraser(torch.eye(3)[:, :1] * scale, torch.eye(3)[:1] / scale) for scale in (1, 2)],
}


@pytest.mark.parametrize("kind", VALUES)
def test_other_values_are_told_apart(kind: str) -> None:
    values = VALUES[kind]
    assert len({told(value) for value in values}) == len(values)
    again = [value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value) for value in values]
    assert [told(value) for value in again] == [told(value) for value in values]


def test_order_of_names_and_shared_parts_make_no_other_value() -> None:
    mask = torch.ones(3)
    assert told({"a": mask, "b": mask}) == told({"b": torch.ones(3), "a": torch.ones(3)})
    assert told({"x", "y", "z"}) == told({"z", "y", "x"})
    assert told([mask, mask]) == told([mask, mask.clone()])


PAIRS = {
    "body": ("def method(m): return m + 1", "def method(m): return m + 2"),
    "operation": ("def method(m): return m + 1", "def method(m): return m - 1"),
    "default": ("def method(m, ridge=1): return m", "def method(m, ridge=2): return m"),
    "keyword default": ("def method(m, *, ridge=1): return m", "def method(m, *, ridge=2): return m"),
    "closure": (
        "def make(r):\n return lambda m: m * r\nmethod = make(1.0)",
        "def make(r):\n return lambda m: m * r\nmethod = make(1.5)",
    ),
    "global": ("RIDGE = 1\ndef method(m): return m * RIDGE", "RIDGE = 2\ndef method(m): return m * RIDGE"),
    "global of an inner function": (
        "R = 1\ndef method(m): return [R * x for x in m]",
        "R = 2\ndef method(m): return [R * x for x in m]",
    ),
    "helper": (
        "def half(m): return m / 2\ndef method(m): return half(m)",
        "def half(m): return m / 3\ndef method(m): return half(m)",
    ),
    "tensor in a closure": (
        "import torch\ndef make(t):\n return lambda m: m @ t\nmethod = make(torch.eye(40))",
        "import torch\ndef make(t):\n return lambda m: m @ t\nmethod = make(torch.eye(40).fliplr())",
    ),
    "decorator": (
        "import functools\n@functools.cache\ndef method(m): return m",
        "import functools\n@functools.cache\ndef method(m): return -m",
    ),
    "state of a callable": (
        "class C:\n def __init__(self, r): self.r = r\n def __call__(self, m): return m * self.r\nmethod = C(1)",
        "class C:\n def __init__(self, r): self.r = r\n def __call__(self, m): return m * self.r\nmethod = C(2)",
    ),
    "code of a callable": (
        "class C:\n def __call__(self, m): return m\nmethod = C()",
        "class C:\n def __call__(self, m): return -m\nmethod = C()",
    ),
    "bound method": (
        "class C:\n r = 1\n def f(self, m): return m * self.r\nmethod = C().f",
        "class C:\n r = 2\n def f(self, m): return m * self.r\nmethod = C().f",
    ),
    "name that the caller gives": (
        "def method(m): return m\nmethod.checkpoint_name = 'one'",
        "def method(m): return m\nmethod.checkpoint_name = 'two'",
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_methods_are_told_by_their_code_and_what_it_reads(pair: str) -> None:
    one, two = PAIRS[pair]
    assert told(functions(one)) == told(functions(one)), "the same source, in another process"
    assert told(functions(one)) != told(functions(two))


def test_lines_and_files_make_no_other_method() -> None:
    assert told(functions("def method(m): return m")) == told(functions("\n\n# moved\ndef method(m):\n\n  return m"))


@pytest.mark.parametrize(
    "held", [threading.Lock(), sys.stdout, (each for each in ())], ids=["lock", "file", "generator"]
)
def test_what_cannot_be_told_is_refused_unless_it_is_named(held: Any) -> None:
    def method(moments: Any) -> Any:
        return held

    with pytest.raises(
        ValueError, match='cannot be told from others .*method.checkpoint_name = "a name that you change'
    ):
        told(method)
    method.checkpoint_name = "mine, of May"  # type: ignore[attr-defined]
    assert told(method) == told(method)


# ---------------------------------------------------------------------------------------------------------- models


class WithState(nn.Linear):
    state: Any = None

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


def a_model() -> nn.Module:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Embedding(50, 8), WithState(8, 8), nn.LayerNorm(8), nn.BatchNorm1d(8), nn.GELU())
    model.register_buffer("table", torch.arange(100.0), persistent=False)
    return model


def set_later_value(model: Any) -> None:
    model[0].weight.data[-1, -1] += 1e-3


def attach(model: Any) -> None:
    model[2].register_forward_hook(lambda module, args, output: output * 2)


CHANGES = {
    "the last value of a parameter": set_later_value,
    "a buffer": lambda model: model[3].running_mean.add_(1),
    "a buffer that no state_dict has": lambda model: model.table[-1].add_(1),
    "an extra state": lambda model: model[1].set_extra_state({"scale": 2.0}),
    "a number": lambda model: setattr(model[2], "eps", 1e-3),
    "a choice": lambda model: setattr(model[4], "approximate", "tanh"),
    "a type": lambda model: model.__setitem__(4, nn.ReLU()),
    "a hook": attach,
    "a forward of its own": lambda model: setattr(model[4], "forward", lambda x: x),
    "a dtype": lambda model: model[1].bfloat16(),
    "a name": lambda model: model.add_module("more", nn.Identity()),
    "tied weights": lambda model: setattr(model[1], "bias", model[2].bias),
    "a frozen NaN": lambda model: model[1].weight.data.fill_(torch.nan),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_another(change: str) -> None:
    model = a_model()
    before = fingerprint(model)
    assert before == fingerprint(a_model()) == fingerprint(copy.deepcopy(model).train())
    CHANGES[change](model)
    assert fingerprint(model) != before


def test_erasers_that_are_attached_count() -> None:
    from leace_fast import Scrubber

    model, found = tiny_models.build("llama"), set()
    site = "model.norm"
    for axis in (None, 0, 1):
        if axis is None:
            found.add(fingerprint(model))
            continue
        eye = torch.eye(model.config.hidden_size)
        with Scrubber({site: Eraser(eye[:, axis : axis + 1], eye[axis : axis + 1])}).attached(model):
            found.add(fingerprint(model))
    assert len(found) == 3
    assert fingerprint(model) in found


def test_packed_and_sharded_weights_count(tmp_path: Path) -> None:
    def packed(scale: float) -> nn.Module:
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(4, 4))
        model[0].weight.data.mul_(scale)
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)

    try:
        assert fingerprint(packed(1.0)) == fingerprint(packed(1.0)) != fingerprint(packed(1.5))
    except RuntimeError as error:  # no engine for it on this processor
        assert "engine" in str(error).lower()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = DeviceMesh("cpu", [0])

        def sharded(last: float) -> nn.Module:
            model: Any = nn.Linear(8, 8)
            weight = torch.arange(64.0).view(8, 8)
            weight[-1, -1] = last
            model.bias = None
            model.weight = nn.Parameter(DTensor.from_local(weight, mesh, [Shard(0)]))
            return model

        assert fingerprint(sharded(0.0)) == fingerprint(sharded(0.0)) != fingerprint(sharded(1.0))
    finally:
        torch.distributed.destroy_process_group()


def test_weights_that_are_not_in_memory_are_refused_or_fetched() -> None:
    model = nn.Sequential(nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match="numbers of 0.weight are not in memory.*load the weights"):
        fingerprint(model)
    accelerate = pytest.importorskip("accelerate")

    def offloaded(last: float) -> nn.Module:
        model: Any = nn.Sequential(nn.Linear(2, 2))
        model[0].weight.data, model[0].bias.data = torch.tensor([[0.0, 1.0], [2.0, last]]), torch.zeros(2)
        return accelerate.cpu_offload(model, torch.device("cpu"))

    assert fingerprint(offloaded(0.0)) == fingerprint(offloaded(0.0)) != fingerprint(offloaded(1.0))


def test_another_process_tells_the_same(tmp_path: Path) -> None:
    script = tmp_path / "tell.py"
    script.write_text(
        "import torch, tiny_models\n"
        "from leace_fast.scrubbing._fingerprint import fingerprint\n"
        "from leace_fast.scrubbing._told_apart import told_apart\n"
        "R = {'a', 'b', 'c', 'd'}\n"
        "def method(m): return [x for x in R if x in m]\n"
        "print(fingerprint(tiny_models.build('llama')), told_apart(method, 'it'))\n"
    )
    path = f"{ROOT}:{ROOT / 'tests'}"
    said = {
        subprocess.run(
            [sys.executable, "-W", "ignore", script],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": path, "PYTHONHASHSEED": seed, "HF_HUB_OFFLINE": "1"},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1 and len(said.pop().split()) == 2
