"""Every family of transformers that can be made tiny is scrubbed until its class means coincide, or refused by name."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nightly
import pytest
import tiny_families
import torch
from test_odd_models import gap

from leace_fast import scrub

GROUPS = {
    "causal": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", 150),
    "masked": ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", 40),
    "seq2seq": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", 30),
}
SOME = {
    "BloomForCausalLM": "",
    "Qwen2MoeForCausalLM": "",
    "RwkvForCausalLM": "",
    "BartForConditionalGeneration": "",
    "DebertaV2ForMaskedLM": "",
    "XLNetLMHeadModel": "one after another in the first axis",
    "Olmo2ForCausalLM": "no norm of this Olmo2ForCausalLM is read by a layer",
    "AlbertForMaskedLM": "ran 2 times in one forward pass",
}
SECONDS = 60  # for one model


def outcome(name: str) -> str:
    """What `scrub` says of a model in both modes: nothing, or why it refuses.

    Raises:
        AssertionError: class means lie apart in the scrubbed model, or the modes refuse other models.
    """
    model = tiny_families.build(name)
    data = tiny_families.batches(model)
    with torch.no_grad():
        model(**{key: value for key, value in data[0].items() if key != "concept_labels"})
    refused: list[str] = []
    for mode in ("sequential", "parallel"):
        try:
            scrubber = scrub(model, data, mode=mode)  # type: ignore[arg-type]
        except ValueError as error:
            refused.append(str(error))
            continue
        left = gap(model, scrubber, data) if mode == "sequential" else 0.0
        assert left < 1e-4, f"{name}: class means lie {left:.1e} apart"
    assert len(refused) != 1 or 'mode="parallel"' in refused[0], f"{name}: {refused[0]}"
    return refused[0] if refused else ""


@pytest.mark.parametrize("name", SOME)
def test_some_families(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    said = outcome(name)
    assert (SOME[name] in said) if SOME[name] else not said


@contextmanager
def in_time() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.nightly
@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="some models take minutes, and need an alarm")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("group", GROUPS)
def test_all_families(group: str) -> None:
    """Those that cannot be made, or run, from these sizes are left out; the others are as many as they were.

    All of them where the whole tier runs, else a tenth.
    """
    transformers = pytest.importorskip("transformers")
    from transformers.models.auto import modeling_auto

    listed, least = GROUPS[group]
    ran, wrong = 0, []
    names = sorted({each if isinstance(each, str) else each[0] for each in getattr(modeling_auto, listed).values()})
    if (part := nightly.portion()) is not None:
        names, least = names[part :: nightly.PARTS], 1
    for name in names:
        try:
            with in_time():
                model = tiny_families.build(name) if hasattr(transformers, name) else None
                if model is None:
                    continue
                batch = tiny_families.batches(model)[0]
                with torch.no_grad():
                    model(**{key: value for key, value in batch.items() if key != "concept_labels"})
        except Exception:  # noqa: S112
            continue
        try:
            with in_time():
                outcome(name)
            ran += 1
        except TimeoutError:
            continue
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
    assert not wrong and ran >= least, "\n".join([f"{ran} ran", *wrong])
