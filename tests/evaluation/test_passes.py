"""Evaluations that hold few logits at a time: the same losses as with all of them, and the memory that they take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from labelled_models import labelled_batches

from leace_fast import Evaluation, evaluate, scrub
from leace_fast.evaluation import _passes

SITE = "model.layers.0.input_layernorm"


def batches_of(name: str) -> list[dict[str, Any]]:
    made = labelled_batches(name, rows=6)
    if name == "bert":
        made = [
            {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)} for batch in made
        ]
    return made


def equal(one: Evaluation, two: Evaluation, kl: bool) -> bool:
    assert one.tokens == two.tokens and one.nats == (two.nats and pytest.approx(two.nats, rel=1e-6))
    assert not kl or one.kl == pytest.approx(two.kl, rel=1e-4)
    assert list(one.probes) == list(two.probes)
    for site, probe in one.probes.items():
        assert probe[2] == pytest.approx(two.probes[site][2], abs=1e-5) and probe[5:] == two.probes[site][5:]
    return True


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bert", "mixtral", "t5"])
def test_few_logits_at_a_time_give_the_same(name, monkeypatch):
    options: dict[str, Any] = {"final_logit_softcapping": 2.0} if name == "gemma2" else {}
    model, batches = tiny_models.build(name, **options), batches_of(name)
    norms = None if name != "t5" else ["encoder.block.0.layer.0.layer_norm"]
    scrubber = scrub(model, batches[:1], sites=norms or "norms")
    whole = evaluate(model, batches[1:], sites=norms), evaluate(model, batches[1:], scrubber)
    used: list[bool] = []
    find = _passes.find_head

    def find_head(*arguments: Any) -> Any:
        used.append((head := find(*arguments)) is not None)
        return head

    monkeypatch.setattr(_passes, "find_head", find_head)
    for budget in (1, 2 * 4 * 64 * 15):  # a sequence of 7 tokens at a time, and two
        monkeypatch.setattr(_passes, "BUDGET", budget)
        assert equal(evaluate(model, batches[1:], sites=norms), whole[0], kl=False)
        assert equal(evaluate(model, batches[1:], scrubber), whole[1], kl=name not in ("t5",))
    # a head whose logits are capped afterwards, and what makes decoder inputs of labels, are run whole
    assert used == [name not in ("gemma2", "t5")] * 4


@pytest.mark.parametrize("sites", [["lm_head"], ["model.norm", "lm_head"]])
def test_a_head_in_which_something_acts_is_left_alone(sites, monkeypatch):
    model, batches = tiny_models.build("llama"), labelled_batches("llama", rows=6)
    whole = evaluate(model, batches, sites=sites)
    monkeypatch.setattr(_passes, "BUDGET", 1)
    assert equal(evaluate(model, batches, sites=sites), whole, kl=False)


def test_a_batch_that_is_not_by_sequence_is_not_divided():
    ids = torch.zeros(4, 3, dtype=torch.int64)
    (whole,) = _passes._pieces({"input_ids": ids, "position_ids": torch.arange(3)[None]}, 2)
    assert len(whole["input_ids"]) == 4
    parts = list(_passes._pieces({"input_ids": ids, "concept_labels": {"a": ids, "b": ids[:, 0]}, "option": 1}, 3))
    assert [len(part["input_ids"]) for part in parts] == [3, 1] and len(parts[1]["concept_labels"]["b"]) == 1


def test_the_pieces_of_a_batch_name_its_sequences_and_draw_the_same_rows(monkeypatch):
    model, batches = tiny_models.build("llama", torch.float32), labelled_batches("llama", rows=6)
    scrubber = scrub(model, batches[:1])
    monkeypatch.setattr(_passes, "BUDGET", 1)
    monkeypatch.setattr(_passes, "find_head", lambda *_: None)
    mixed = {name: torch.cat([batches[1][name], batches[0][name][:1]]) for name in batches[0]}
    with pytest.raises(ValueError, match="fitted on sequence 6 of batch 1 of batches"):
        evaluate(model, [batches[2], mixed], scrubber)
    clean, erased = evaluate(model, batches[1:]), evaluate(model, batches[1:], scrubber)
    assert clean.probes[SITE].test_groups == erased.probes[SITE].test_groups == 6


MEASURED = """
import resource, sys, torch, transformers, leace_fast as lf
common = {"vocab_size": 49152, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32}
heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
name = sys.argv[1]
config = getattr(transformers, name + "Config")(**common, **heads)
model = getattr(transformers, name + "ForCausalLM")(config).eval()
def batch(rows, length):
    ids = torch.randint(3, 49152, (rows, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "concept_labels": ids % 3}
fit = {key: value for key, value in batch(4, 64).items() if key != "labels"}
scrubber = lf.scrub(model, [fit]) if sys.argv[2] == "erased" else None
lf.evaluate(model, [batch(8, 16)], scrubber)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before = peak()
found = lf.evaluate(model, [batch(28, 1000)], scrubber, probe_rows=2000)
assert found.tokens == 28 * 999 and len(found.probes) >= 4
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit")
@pytest.mark.parametrize(("name", "side"), [("Llama", "clean"), ("Llama", "erased"), ("Gemma2", "erased")])
def test_28_thousand_tokens_of_a_vocabulary_of_49_thousand_take_less_than_a_gigabyte(name, side):
    command = [sys.executable, "-W", "ignore", "-c", MEASURED, name, side]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1.0, "gigabytes above what the model itself takes"
