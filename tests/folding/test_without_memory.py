"""Weights that folding cannot change, or cannot follow, are refused by name: quantised, sharded, in eight bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from labelled_models import labelled_batches
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from leace_fast import Scrubber, find_sites, fold_, fold_residual_, scrub
from leace_fast.folding import export_lora
from leace_fast.models import unwrapped

BATCHES = labelled_batches("llama", 4)
READERS, WRITERS = ("q_proj", "k_proj", "v_proj"), ("o_proj",)


class Packed(Tensor):
    """A tensor that has no memory of its own and computes from what it holds, as quantised weights do."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Packed:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def opened(value: Any) -> Any:
            return value.inner if isinstance(value, Packed) else value

        args, kwargs = pytree.tree_map(opened, (args, kwargs or {}))
        made = func(*args, **kwargs)
        return Packed(made) if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default) else made


class Eight(nn.Module):
    """A linear layer of weights in 8 bits, widened when it runs."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype))


def pack(linear: nn.Linear) -> nn.Module:
    linear.weight = nn.Parameter(Packed(linear.weight.detach()), requires_grad=False)
    return linear


def dynamic(linear: nn.Linear) -> nn.Module:
    made = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear}, dtype=torch.qint8)
    return made[0]


KINDS: dict[str, Callable[[nn.Linear], nn.Module]] = {"packed": pack, "float8": Eight, "int8": dynamic}


def built(kind: str, names: tuple[str, ...]) -> Any:
    model = tiny_models.build("llama", torch.float32)
    for layer in model.model.layers:
        for name in names:
            setattr(layer.self_attn, name, KINDS[kind](getattr(layer.self_attn, name)))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_readers_are_named(kind: str, tmp_path: Path) -> None:
    model = built(kind, READERS)
    scrubber = scrub(model, BATCHES)
    assert list(scrubber) == [site.name for site in find_sites(tiny_models.build("llama"), BATCHES[0])]
    for use in (
        lambda: scrubber.fold_(model, BATCHES[0], max_cost_ratio=99),
        lambda: scrubber.export_lora(model, tmp_path, BATCHES[0], max_cost_ratio=99),
    ):
        with pytest.raises(ValueError, match="_proj"):
            use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [READERS, WRITERS])
@pytest.mark.parametrize("kind", ["packed"])
def test_the_stream_is_not_followed_past_them(kind: str, names: tuple[str, ...]) -> None:
    model = built(kind, names)
    eraser = next(iter(scrub(model, BATCHES).values()))
    with pytest.raises(ValueError, match=r"_proj.weight' is a Packed without memory of its own"):
        fold_residual_(model, eraser, BATCHES[0])


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_writers_in_other_forms_are_named(kind: str) -> None:
    model = built(kind, WRITERS)
    eraser = next(iter(scrub(model, BATCHES).values()))
    with pytest.raises(ValueError, match="post_attention_layernorm.*reads what is no sum|o_proj.weight' is a"):
        fold_residual_(model, eraser, BATCHES[0])


@pytest.fixture(autouse=True, scope="module")
def _no_group_is_left() -> Iterator[None]:
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def one_process() -> Any:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("needs gloo")
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    return torch.distributed.device_mesh.init_device_mesh("cpu", (1,))


def fully_sharded() -> Any:
    from torch.distributed.fsdp import fully_shard

    model, mesh = tiny_models.build("llama"), one_process()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def in_tensor_parallel() -> Any:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model, mesh = tiny_models.build("llama"), one_process()
    across = {f"self_attn.{name}": ColwiseParallel() for name in READERS} | {"self_attn.o_proj": RowwiseParallel()}
    across |= {"mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel(), "mlp.down_proj": RowwiseParallel()}
    for layer in model.model.layers:
        parallelize_module(layer, mesh, across)  # type: ignore[arg-type]
    return model


def in_data_parallel() -> Any:
    one_process()
    return nn.parallel.DistributedDataParallel(tiny_models.build("llama"))


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
@pytest.mark.parametrize("make", [fully_sharded, in_tensor_parallel, in_data_parallel])
def test_sharded_models_are_scrubbed_as_the_whole_is(make: Callable[[], Any], mode: Any) -> None:
    alone = scrub(tiny_models.build("llama"), BATCHES, mode=mode)
    found = scrub(make(), BATCHES, mode=mode)
    assert [name.removeprefix("module.") for name in found] == list(alone)
    pairs = zip(found.values(), alone.values(), strict=True)
    assert all(torch.allclose(a.left @ a.right, b.left @ b.right) for a, b in pairs)


@pytest.mark.parametrize("make", [fully_sharded, in_tensor_parallel])
def test_sharded_weights_are_named(make: Callable[[], Any], tmp_path: Path) -> None:
    model = make()
    scrubber: Any = Scrubber(dict(scrub(tiny_models.build("llama"), BATCHES)))
    with pytest.raises(ValueError, match="_proj"):
        fold_(model, scrubber, BATCHES[0], max_cost_ratio=99)
    with pytest.raises(ValueError, match="_proj"):
        export_lora(model, scrubber, tmp_path, BATCHES[0], max_cost_ratio=99)


def test_a_sharded_output_is_refused_as_a_site() -> None:
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Identity())
    from torch.distributed.tensor import Shard

    across: Any = {"0": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)}
    parallelize_module(model, one_process(), across)
    with pytest.raises(ValueError, match="'0' cannot be a site: its output is a float32 DTensor"):
        find_sites(model, torch.ones(2, 3, 8), "0")


def test_a_data_parallel_model_is_folded_and_restored() -> None:
    model = in_data_parallel()
    scrubber = scrub(model, BATCHES)
    report = scrubber.fold_(model, BATCHES[0], max_cost_ratio=99)
    assert all(site.startswith("module.") for site in report.readers)
    assert unwrapped(model) is model.module
    scrubber.unfold_(model)
