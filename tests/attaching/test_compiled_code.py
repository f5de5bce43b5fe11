"""Code that was compiled or captured round erasers runs erased, or is found out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch
from scrubbed_models import LAST, eraser_of, outputs_of, scrubber_of
from tiny_models import Block
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from leace_fast import Scrubber

pytestmark = pytest.mark.parametrize("fuse", [False, True], ids=["hooked", "fused"])


@pytest.fixture
def llama() -> tuple[Any, dict[str, Tensor], Scrubber]:
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama")
    return model, batch, scrubber_of(model, batch)


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch.compiler.reset()


@pytest.fixture
def block() -> tuple[nn.Module, Tensor, Scrubber]:
    torch.manual_seed(0)
    return Block().eval(), torch.randn(5, 8), Scrubber({"norm": eraser_of("norm", 2, 8)})


def compiled(function: Callable[..., Any]) -> Any:
    return torch.compile(function, backend="eager", fullgraph=True)


def captured(model: nn.Module, x: Tensor) -> Any:
    """What replays the operations of one call, as a CUDA graph does."""
    trace: Any = make_fx(model)
    return trace(x)


def close(one: Tensor, two: Tensor) -> bool:
    return torch.allclose(one, two, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------ compiled code


def test_compiled_before_and_called_through_a_function_of_ones_own(fuse, block):
    model, x, scrubber = block
    run = compiled(lambda x: model(x) * 2)
    clean = run(x)
    with scrubber.attached(model, fuse=fuse):
        wanted = model(x) * 2
        assert close(run(x), wanted) and not close(wanted, clean)
    assert torch.equal(run(x), clean)


def test_code_compiled_for_other_erasers_is_not_reused(fuse, block):
    model, x, scrubber = block
    run = compiled(model)
    assert close(run(x), model(x))
    for seed in ("another", "norm", "another", "a third"):
        other = Scrubber({"norm": eraser_of(seed, 2, 8)})
        with other.attached(model, fuse=fuse):
            assert close(run(x), model(x))
            other.verify(model, run, x)
        assert close(run(x), model(x))


def test_a_part_of_the_model_that_was_compiled_alone(fuse, block):
    _, x, _ = block
    model = nn.Sequential(Block(), Block())
    scrubber = Scrubber({f"{n}.norm": eraser_of(f"{n}", 2, 8) for n in range(2)})
    with scrubber.attached(model, fuse=fuse):
        wanted = model(x)
    for layer in model:
        layer.compile(backend="eager")
    clean = model(x)
    with scrubber.attached(model, fuse=fuse):
        assert close(model(x), wanted) and not close(wanted, clean)
    assert close(model(x), clean)


def test_many_attachments_never_exhaust_the_compiler(fuse, block):
    """It gives up on code that it compiled again too often; with one graph demanded, it then raises."""
    model, x, scrubber = block
    run = compiled(model)
    for seed in range(12):
        with Scrubber({"norm": eraser_of(f"{seed}", 2, 8)}).attached(model, fuse=fuse):
            assert close(run(x), model(x))


def test_a_norm_that_was_replaced_under_compiled_code(fuse, block):
    model, x, scrubber = block
    run = compiled(model)
    with scrubber.attached(model, fuse=fuse):
        wanted = run(x)
        kept, model.norm = model.norm, nn.RMSNorm(8)
        with pytest.raises(Exception, match="without being erased at 'norm'"):
            run(x)
        model.norm = nn.LayerNorm(8)
        with pytest.raises(Exception, match="without being erased at 'norm'"):
            run(x)
        model.norm = kept
        assert close(run(x), wanted)


# ------------------------------------------------- graphs that Python does not enter any more


def test_a_graph_that_was_captured_before_is_found_out(fuse, block):
    model, x, scrubber = block
    before = captured(model, x)
    with scrubber.attached(model, fuse=fuse):
        with pytest.raises(RuntimeError, match="100.0% of the erasers' effect away"):
            scrubber.verify(model, before, x)
        inside = captured(model, x)
        scrubber.verify(model, inside, x)
        wanted = model(x)
    assert close(inside(x), wanted)
    with pytest.raises(ValueError, match="not attached"):
        scrubber.verify(model, inside, x)


def test_an_exported_program_keeps_what_it_was_exported_with(fuse, block):
    model, x, scrubber = block
    before = torch.export.export(model, (x,)).module()
    with scrubber.attached(model, fuse=fuse), torch.no_grad():
        inside = torch.export.export(model, (x,)).module()
        scrubber.verify(model, inside, x)
        with pytest.raises(RuntimeError, match="without being erased"):
            scrubber.verify(model, before, x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*is erased after")
def test_a_scripted_trace(fuse, block):
    model, x, scrubber = block
    before: Any = torch.jit.trace(model, x)
    with scrubber.attached(model, fuse=fuse), torch.no_grad():
        inside: Any = torch.jit.trace(model, x, check_trace=False)
        scrubber.verify(model, inside, x)
        with pytest.raises(RuntimeError, match="without being erased"):
            scrubber.verify(model, before, x)
    with pytest.raises((ValueError, RuntimeError, TypeError)), scrubber.attached(before, fuse=fuse):
        before(x)


def test_verify_finds_one_site_that_is_missing(fuse, llama):
    model, batch, scrubber = llama
    stale = tiny_models.build("llama")
    part = Scrubber({site: eraser for site, eraser in scrubber.items() if site != LAST})
    with scrubber.attached(model, fuse=fuse):
        with part.attached(stale, fuse=fuse), pytest.raises(RuntimeError, match="without being erased"):
            scrubber.verify(model, stale, batch)
        with pytest.raises(ValueError, match="shape"):
            scrubber.verify(model, lambda **batch: model(**batch).logits[:, :1], batch)
        assert not close(outputs_of(model, batch), outputs_of(stale, batch))  # verify left the erasers at work
