"""nnsight and pyvene around an erased model: its log-probabilities, and what they read at a site."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from scrubbed_models import FIRST, scrubber_of

from leace_fast.integrations import pyvene_config

pytestmark = pytest.mark.filterwarnings("ignore")

MOST = 1e-4  # of log-probabilities
IDS = torch.tensor([[5, 9, 33, 7, 61, 12, 40, 3], [18, 22, 4, 50, 51, 52, 53, 9]])


@torch.no_grad()
def log_probabilities(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits.log_softmax(-1)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def model_and_scrubber() -> tuple[Any, Any]:
    model = tiny_models.build("llama", torch.float32)
    return model, scrubber_of(model, {"input_ids": IDS})


@pytest.mark.parametrize("fuse", [False, True])
def test_nnsight_reads_the_erased_site(fuse: bool) -> None:
    nnsight: Any = pytest.importorskip("nnsight", reason="pip install nnsight (test_with_extras.py does)")
    model, scrubber = model_and_scrubber()
    clean = log_probabilities(model)
    seen: list[torch.Tensor] = []
    with scrubber.attached(model, fuse=fuse):
        handle = model.get_submodule(FIRST).register_forward_hook(lambda module, args, output: seen.append(output))
        wanted = log_probabilities(model)
        handle.remove()
        wrapped = nnsight.NNsight(model)  # attach first, wrap then
        with torch.no_grad(), wrapped.trace(input_ids=IDS, use_cache=False):
            read = wrapped.model.layers[0].input_layernorm.output.save()
            logits = wrapped.output.logits.save()
    assert distance(logits.log_softmax(-1), wanted) < MOST < 0.1 < distance(wanted, clean)
    assert distance(read, seen[0]) < MOST
    eraser = scrubber[FIRST]
    left_over = (read - eraser.mean.float()) @ eraser.right.float().mT
    assert float(left_over.abs().max()) < MOST, "what nnsight reads is erased"


def test_pyvene_erases_at_every_site() -> None:
    pyvene: Any = pytest.importorskip("pyvene", reason="pip install pyvene (test_with_extras.py does)")
    model, scrubber = model_and_scrubber()
    clean = log_probabilities(model)
    with scrubber.attached(model):
        wanted = log_probabilities(model)
    erased = pyvene.IntervenableModel(pyvene_config(scrubber), model=model)
    with torch.no_grad():
        _, output = erased({"input_ids": IDS, "use_cache": False})
    assert distance(output.logits.log_softmax(-1), wanted) < MOST < 0.1 < distance(wanted, clean)


def test_names_of_pyvene() -> None:
    _, scrubber = model_and_scrubber()
    names = [each["component"] for each in pyvene_config(scrubber)]
    assert names[:2] == [f"model.layers[0].{name}_layernorm.output" for name in ("input", "post_attention")]
    assert pyvene_config({"transformer.h.11": scrubber[FIRST]})[0]["component"] == "transformer.h[11].output"
    with pytest.raises(ValueError, match="got no eraser"):
        pyvene_config({})
