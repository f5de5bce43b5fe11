"""What a scrubbed model loses and what can be read in it: against values by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from leace_fast import Scrubber, evaluate, random_like, scrub
from leace_fast.evaluation import is_causal, linear_probe
from leace_fast.models import tap

CLASSES = 3


def batches(count: int, seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(3, 63, (8, 24), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 15:] = 0
        made.append({"input_ids": ids, "attention_mask": mask, "concept_labels": ids % CLASSES})
    return made


FIT, HELD_OUT, TRAIN = batches(8, 0), batches(5, 1), batches(8, 2)


@pytest.fixture(scope="module")
def model():
    return tiny_models.build("llama", torch.float32)


@pytest.fixture(scope="module")
def scrubber(model) -> Scrubber:
    return scrub(model, FIT)


def logits_of(model, batch) -> Tensor:
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].double()


def test_models_that_generate_without_an_encoder_are_causal():
    import transformers

    text: Any = {**tiny_models.TABLE["gemma3"][2], "vocab_size": tiny_models.VOCABULARY}
    vision: Any = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(text_config=text, vision_config={**vision, "image_size": 8, "patch_size": 4})
    with torch.device("meta"):
        assert is_causal(transformers.Gemma3ForConditionalGeneration(config))
    assert is_causal(torch.compile(tiny_models.build("llama")))  # its type is another one
    assert not is_causal(tiny_models.build("t5")) and not is_causal(tiny_models.build("bert"))


def test_loss_and_divergence_by_hand(model, scrubber):
    nats = clean_nats = kl = tokens = 0.0
    for batch in HELD_OUT:
        clean = logits_of(model, batch)
        with scrubber.attached(model):
            erased = logits_of(model, batch)
        targets = batch["input_ids"][:, 1:].masked_fill(batch["attention_mask"][:, 1:] == 0, -100)
        kept = targets != -100
        tokens += int(kept.sum())
        nats += float(cross_entropy(erased[kept], targets[kept], reduction="sum"))
        clean_nats += float(cross_entropy(clean[kept], targets[kept], reduction="sum"))
        true, found = log_softmax(clean[kept], -1), log_softmax(erased[kept], -1)
        kl += float(kl_div(found, true, reduction="sum", log_target=True))
    found = evaluate(model, HELD_OUT, scrubber, text_bytes=1000)
    assert found.tokens == tokens and found.nats == pytest.approx(nats / tokens, rel=1e-5)
    assert found.kl == pytest.approx(kl / tokens, rel=1e-3) and kl / tokens > 1e-3
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / 1000, rel=1e-5)
    clean = evaluate(model, HELD_OUT)
    assert clean.nats == pytest.approx(clean_nats / tokens, rel=1e-5)
    assert clean.kl is None and clean.bits_per_byte is None
    assert "nats a token" in str(found) and "best constant" in str(found)


def test_labels_say_what_is_scored(model):
    labels = HELD_OUT[0]["input_ids"].clone()
    labels[:, :20] = -100
    found = evaluate(model, [{**HELD_OUT[0], "labels": labels}], probe=False)
    assert found.tokens == 8 * 4 and not found.probes


def test_probes_read_the_scrubbed_model(model, scrubber):
    clean = evaluate(model, HELD_OUT, probe_batches=TRAIN)
    erased = evaluate(model, HELD_OUT, scrubber, probe_batches=TRAIN)
    assert list(clean.probes) == list(erased.probes) == list(scrubber)
    rows: dict[str, list[Tensor]] = {"x": [], "y": [], "u": [], "v": []}
    site = list(scrubber)[-1]
    for part, (x, y) in ((TRAIN, "xy"), (HELD_OUT, "uv")):
        for batch in part:
            mask = batch["attention_mask"].bool()
            with scrubber.attached(model), tap(model, [site], lambda n, o: rows[x].append(o[mask])):  # noqa: B023
                logits_of(model, batch)
            rows[y].append(batch["concept_labels"][mask])
    lengths = torch.tensor([24, 15, 24, 24, 24, 24, 24, 24])  # of the sequences of a batch
    fit, held_out = (torch.arange(8 * count).repeat_interleave(lengths.repeat(count)) for count in (8, 5))
    by_hand = linear_probe(*(torch.cat(rows[name]) for name in "xyuv"), train_groups=fit, groups=64 + held_out)
    assert erased.probes[site] == by_hand
    assert clean.probes[site].accuracy > by_hand.constant + 0.1
    # 1,500 rows to fit on leave something, which a probe of these rows cannot see
    assert all(probe.nats < 0.02 < 0.2 < clean.probes[site].nats for site, probe in erased.probes.items())
    assert not any(probe.in_sample for probe in erased.probes.values())
    in_sample = evaluate(model, HELD_OUT, scrubber, probe_batches=FIT, in_sample=True)
    assert all(abs(probe.accuracy - probe.constant) < 0.05 and probe.in_sample for probe in in_sample.probes.values())
    assert str(in_sample).count("in-sample probe") == 4 and "in-sample" not in str(erased)


def test_without_training_batches_every_other_sequence_trains(model):
    (probe,) = evaluate(model, HELD_OUT, sites="model.layers.0.input_layernorm").probes.values()
    assert probe.train_rows == 5 * 4 * 24 and probe.test_rows == 5 * (4 * 24 - 9)
    few = evaluate(model, HELD_OUT, sites="model.layers.0.input_layernorm", probe_rows=100).probes
    assert [probe.train_rows for probe in few.values()] == [100]


def test_other_models_have_no_loss_but_probes():
    found = evaluate(tiny_models.build("bert", torch.float32), HELD_OUT)
    assert found.nats is None and found.perplexity is None and len(found.probes) == 4
    masked = [{**batch, "labels": batch["input_ids"]} for batch in HELD_OUT]
    assert evaluate(tiny_models.build("bert", torch.float32), masked).tokens == 5 * 8 * 24


def test_random_controls_have_the_same_ranks_and_means(model, scrubber):
    one, two = random_like(scrubber, 1), random_like(scrubber, 2)
    for site, eraser in scrubber.items():
        assert one[site].rank == eraser.rank and eraser.mean is not None
        assert torch.equal(one[site].mean, eraser.mean)  # type: ignore[arg-type]
        assert torch.allclose(one[site].right @ one[site].left, torch.eye(eraser.rank, dtype=torch.float64))
        assert not torch.equal(one[site].left, two[site].left)
        assert torch.equal(one[site].left, random_like(scrubber, 1)[site].left)
    assert one.identity == scrubber.identity


def test_bad_input(model):
    with pytest.raises(ValueError, match="got no batches"):
        evaluate(model, [])
    with pytest.raises(ValueError, match="names several concepts"):
        evaluate(model, [{**HELD_OUT[0], "concept_labels": {"a": HELD_OUT[0]["concept_labels"]}}])
    with pytest.raises(ValueError, match="no row of .* is left to test the probe on"):
        evaluate(model, [{name: value[:1] for name, value in HELD_OUT[0].items()}])


def test_a_model_whose_rows_are_not_finite_is_told_by_site(scrubber: Scrubber) -> None:
    broken = tiny_models.build("llama", torch.float32)
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight[3] = math.nan
    with pytest.raises(ValueError, match="at 'model.layers.1.input_layernorm.*': x holds NaN or Inf"):
        evaluate(broken, HELD_OUT, scrubber, probe_batches=TRAIN)
