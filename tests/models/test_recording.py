"""Recording moments from ordinary forward calls."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor, nn

from leace_fast import Eraser, Moments
from leace_fast.models import find_sites, record, submodules
from leace_fast.scrubbing import Scrubber

CLASSES = 3
FIRST = "model.layers.0.input_layernorm"  # of the Llama


def same(one: Moments, two: Moments) -> bool:
    names = ("class_counts", "mean", "class_means", "covariance", "cross_covariance", "target_covariance")
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)


def token_labels(mask: Tensor, seed: int = 0) -> Tensor:
    labels = torch.randint(0, CLASSES, mask.shape, generator=torch.Generator().manual_seed(seed))
    labels[0, 0], labels[0, 1:4] = -100, torch.arange(CLASSES)
    return labels


def captured(model: nn.Module, batch: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Outputs by module, by the framework's own hooks."""
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda m, a, output, name=name: outputs.update({name: output}))
        for name, module in submodules(model, names).items()
    ]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return outputs


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("kind", ["tokens", "sequences"])
@pytest.mark.parametrize("name", tiny_models.ARCHITECTURES)
def test_record_is_an_update_by_hand(name, kind):
    model = tiny_models.build(name)
    if name == "vit" and kind == "tokens":
        pytest.skip("images have no tokens to label")
    batches = [tiny_models.batch(name, rows, seed) for rows, seed in ((3, 1), (2, 2))]
    sites = None
    if name == "t5" and kind == "tokens":
        sites = "encoder.*norm"
    wanted = [site.name for site in find_sites(model, batches[0], sites or "norms")]
    by_hand = {site: Moments(tiny_models.WIDTH, CLASSES) for site in wanted}
    labels = []
    for batch in batches:
        rows = len(next(iter(batch.values())))
        mask = batch.get("attention_mask")
        labels.append(torch.arange(rows) % CLASSES if kind == "sequences" or mask is None else token_labels(mask))
        for site, x in captured(model, batch, wanted).items():
            x = x.reshape(rows, -1, tiny_models.WIDTH)
            each = labels[-1] if labels[-1].ndim == 2 else labels[-1][:, None].expand(x.shape[:2])
            decoder = name == "t5" and site.startswith("decoder")
            by_hand[site].update(x, each, mask=None if decoder else mask)
    with record(model, sites, num_classes=CLASSES) as moments, torch.no_grad():
        assert moments == {}
        for batch, label in zip(batches, labels, strict=True):
            model(**batch, concept_labels=label)
    assert list(moments) == wanted and hooks(model) == 0
    assert all(same(moments[site], by_hand[site]) for site in wanted)
    assert all(moments[site].count > 5 for site in wanted)


@pytest.fixture
def llama() -> tuple[Any, dict[str, Tensor]]:
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama")
    return model, {**batch, "concept_labels": token_labels(batch["attention_mask"])}


def test_the_mask_leaves_padding_out(llama):
    model, batch = llama
    with record(model, num_classes=CLASSES) as moments:
        model(**batch)
    used = batch["attention_mask"].bool() & (batch["concept_labels"] >= 0)
    assert {m.count for m in moments.values()} == {int(used.sum())} and not used.all()
    assert torch.equal(moments["model.layers.0.input_layernorm"].class_counts, batch["concept_labels"][used].bincount())


def test_labels_of_padding_may_be_anything(llama):
    model, batch = llama
    with record(model, num_classes=CLASSES) as wanted:
        model(**batch)
    labels = batch["concept_labels"].where(batch["attention_mask"].bool(), 99)
    with record(model, num_classes=CLASSES) as moments:
        model(**{**batch, "concept_labels": labels})
    assert same(moments[FIRST], wanted[FIRST]) and (labels == 99).any()


class Pooled(nn.Module):
    """A layer, then a norm of one row a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))])
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.norm((self.layers[0](x) * attention_mask[..., None]).mean(1))


@pytest.mark.parametrize(("length", "counts"), [(3, [1, 2, 1]), (1, [1, 1, 0])])
def test_one_row_a_sequence(length, counts):
    mask = torch.ones(4, length, dtype=torch.int64)
    mask[2:, -1] = 0  # two sequences of length 1 are all padding
    model = Pooled()
    with record(model, ["norms", "norm"], num_classes=3) as moments:
        model(torch.randn(4, length, 4), attention_mask=mask, concept_labels=torch.tensor([0, 1, 2, 1]))
    assert moments["norm"].class_counts.tolist() == counts
    assert moments["layers.0.0"].count == int(mask.sum())


def test_outputs_and_gradients_are_those_of_a_plain_call(llama):
    model, batch = llama
    plain = {key: value for key, value in batch.items() if key != "concept_labels"}
    model.train()
    clean = model(**plain, labels=plain["input_ids"])
    clean.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with record(model, num_classes=CLASSES) as moments:
        recorded = model(**batch, labels=plain["input_ids"])
    recorded.loss.backward()
    assert torch.equal(clean.logits, recorded.logits) and model.training
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, model.parameters(), strict=True))
    assert not any(m.covariance.requires_grad for m in moments.values())


def test_the_batch_may_be_positional(llama):
    model, batch = llama
    with record(model, num_classes=CLASSES) as moments:
        model(batch["input_ids"], batch["attention_mask"], concept_labels=batch["concept_labels"])
    with record(model, num_classes=CLASSES) as keywords:
        model(**batch)
    assert all(same(moments[site], keywords[site]) for site in keywords)


@pytest.mark.parametrize("sites", ["model.norm", ["model.norm"], "*.norm", None])
def test_sites_by_name_pattern_or_traced_before(llama, sites):
    model, batch = llama
    sites = find_sites(model, batch, "model.norm") if sites is None else sites
    with record(model, sites, num_classes=CLASSES, per_class=True) as moments:
        model(**batch)
    assert list(moments) == ["model.norm"] and moments["model.norm"].class_covariances.shape == (CLASSES, 16, 16)


@pytest.mark.parametrize("kind", ["tokens", "sequences"])
def test_real_valued_targets(llama, kind):
    model, batch = llama
    mask = batch["attention_mask"]
    targets = torch.randn(*(mask.shape if kind == "tokens" else mask.shape[:1]), 2)
    with record(model, target_dim=2) as moments:
        model(**{**batch, "concept_labels": targets})
    each = targets if kind == "tokens" else targets[:, None].expand(*mask.shape, 2)
    site = "model.layers.1.input_layernorm"
    x = captured(model, tiny_models.batch("llama"), [site])[site]
    wanted = Moments(16, target_dim=2).update(x, each, mask=mask)
    assert all(
        torch.equal(getattr(moments[site], name), getattr(wanted, name))
        for name in ("class_counts", "mean", "covariance", "cross_covariance", "target_covariance")
    )


def test_float_masks_inference_mode_and_half_precision(llama):
    model, batch = llama
    with record(model, num_classes=CLASSES) as plain, torch.no_grad():
        model(**batch)
    with record(model, num_classes=CLASSES) as moments, torch.inference_mode():
        model(**{**batch, "attention_mask": batch["attention_mask"].double()})
    assert all(same(moments[site], plain[site]) for site in plain)
    half = tiny_models.build("llama", torch.bfloat16)
    with record(half, num_classes=CLASSES) as moments, torch.no_grad():
        half(**batch)
    assert [m.count for m in moments.values()] == [m.count for m in plain.values()]
    assert torch.allclose(moments[FIRST].mean, plain[FIRST].mean, atol=0.02)


def test_what_is_recorded_inside_attached_is_erased(llama):
    model, batch = llama
    first, *others = (site.name for site in find_sites(model, batch))
    direction = torch.eye(16, dtype=torch.float64)[:, :1]
    scrubber = Scrubber({first: Eraser(direction, direction.mT)})
    with record(model, num_classes=CLASSES) as clean:
        model(**batch)
    with scrubber.attached(model), record(model, num_classes=CLASSES) as erased:
        model(**batch)
    assert (erased[first].class_means[:, 0] == 0).all() and not (clean[first].class_means[:, 0] == 0).any()
    assert torch.equal(erased[first].class_means[:, 1:], clean[first].class_means[:, 1:])
    assert not any(same(erased[site], clean[site]) for site in others)


def test_code_compiled_before_is_recorded(llama):
    model, batch = llama
    with record(model, num_classes=CLASSES) as plain, torch.no_grad():
        model(**batch)
    compiled: Any = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(**tiny_models.batch("llama"))
        with record(model, num_classes=CLASSES) as moments:
            compiled(**batch)
    assert all(torch.allclose(moments[s].covariance, plain[s].covariance) for s in plain)


# -------------------------------------------------------------------- mistakes


def bad(**changes: Any):
    return lambda batch: {**batch, **changes}


BAD_BATCHES = [
    (lambda b: {k: v for k, v in b.items() if k != "concept_labels"}, ValueError, 'pass "concept_labels"'),
    (bad(concept_labels=torch.zeros(3, 5, dtype=torch.int64)), ValueError, r"\(3, 5\).*has shape \(3, 7\)"),
    (bad(concept_labels=torch.zeros(4, dtype=torch.int64)), ValueError, r"\(4,\).*has shape \(3, 7\)"),
    (bad(concept_labels=torch.zeros(3, 7, 1, dtype=torch.int64)), ValueError, "expected .batch, length."),
    (bad(concept_labels=torch.tensor(1)), ValueError, "expected .batch, length."),
    (bad(concept_labels=torch.full((3, 7), CLASSES)), ValueError, "label"),
    (bad(concept_labels=torch.full((3, 7), -1)), ValueError, "label"),
    (bad(concept_labels=torch.zeros(3, 7)), TypeError, "expected integer labels"),
    (bad(concept_labels=[[0] * 7] * 3), TypeError, "is a list, expected a tensor"),
    (bad(attention_mask=torch.ones(3, 1, 7, 7)), ValueError, r"attention_mask has shape \(3, 1, 7, 7\)"),
    (bad(attention_mask=torch.ones(3, 6, dtype=torch.int64)), ValueError, r"\(3, 7\).*has shape \(3, 6\)"),
    (bad(attention_mask=torch.full((3, 7), 0.5)), ValueError, "1 for tokens and 0 for padding"),
    (
        bad(attention_mask=None, concept_labels=torch.zeros(3, 5, dtype=torch.int64)),
        ValueError,
        r"\(3, 5\) does not fit the output of 'model.layers.0.input_layernorm', of shape \(3, 7, 16\)",
    ),
    (bad(input_ids=torch.full((3, 7), 99)), IndexError, "index out of range"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_BATCHES)
def test_a_failed_call_changes_nothing(llama, change, error, message):
    model, batch = llama
    with record(model, num_classes=CLASSES) as moments:
        with pytest.raises(error, match=message):
            model(**change(batch))
        assert moments == {}
        model(**batch)
        before = {site: m.copy() for site, m in moments.items()}
        with pytest.raises(error, match=message):
            model(**change(batch))
        assert all(same(moments[site], before[site]) for site in before)
        model(**batch)  # and the recording goes on
        assert all(moments[site].count == 2 * before[site].count for site in before)
    assert hooks(model) == 0


def test_a_pass_that_breaks_midway_adds_nothing_anywhere(llama):
    model, batch = llama
    with record(model, num_classes=CLASSES) as moments:
        model(**batch)
        before = {site: m.copy() for site, m in moments.items()}
        # after two sites have run
        handle = model.model.layers[1].register_forward_pre_hook(lambda m, a: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            model(**batch)
        handle.remove()
        assert all(same(moments[site], before[site]) for site in before)
        model(**batch)
        assert all(moments[site].count == 2 * before[site].count for site in before)


def test_tokens_of_a_decoder_have_no_labels():
    model, batch = tiny_models.build("t5"), tiny_models.batch("t5")
    batch["decoder_input_ids"] = batch["input_ids"]  # of the same length: only the module tells them apart
    labels = token_labels(batch["attention_mask"])
    with pytest.warns(UserWarning), record(model, num_classes=CLASSES) as moments:  # noqa: SIM117
        with pytest.raises(ValueError, match="is in the decoder"):
            model(**batch, concept_labels=labels)
    assert moments == {}


def test_the_decoder_has_a_mask_of_its_own():
    model, batch = tiny_models.build("t5"), tiny_models.batch("t5")
    batch["decoder_attention_mask"] = torch.tensor([[1] * 5, [1] * 4 + [0], [1] * 3 + [0] * 2])
    with record(model, num_classes=CLASSES) as moments:
        model(**batch, concept_labels=torch.tensor([0, 1, 2]))
    assert moments["decoder.block.0.layer.0.layer_norm"].class_counts.tolist() == [5, 4, 3]
    assert moments["encoder.block.0.layer.0.layer_norm"].class_counts.tolist() == [7, 6, 5]


class Odd(nn.Module):
    """A site whose output is changed in place, skipped, or run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))])

    def forward(self, x: Tensor, how: str = "") -> Tensor:
        norm, linear = self.layers[0]  # type: ignore[misc]
        if how == "skipped":
            return linear(x)
        hidden = norm(x)
        out = linear(hidden)
        if how == "twice":
            out = out + linear(norm(out))
        if how == "in place":
            hidden.mul_(2)
        return out + hidden


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("in place", RuntimeError, "changed the output of 'layers.0.0' in place"),
        ("skipped", ValueError, "'layers.0.0' did not run"),
        ("twice", ValueError, "'layers.0.0' ran twice"),
    ],
)
def test_sites_that_do_not_run_as_they_were_traced(how, error, message):
    model, labels = Odd(), torch.tensor([0, 1])
    with record(model, num_classes=2) as moments, torch.no_grad():
        model(torch.randn(2, 3, 4), concept_labels=labels)
        with pytest.raises(error, match=message):
            model(torch.randn(2, 3, 4), how=how, concept_labels=labels)
        assert moments["layers.0.0"].count == 6
        before = moments["layers.0.0"].copy()
        if how == "in place":
            with torch.inference_mode():  # no version to tell, so the output was copied
                x = torch.randn(2, 3, 4)
                model(x, how=how, concept_labels=labels)
            norm = model.layers[0][0]  # type: ignore[index]
            wanted = Moments(4, 2).merge(before).update(norm(x), labels[:, None].expand(2, 3))
            assert torch.allclose(moments["layers.0.0"].covariance, wanted.covariance, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"num_classes": 2, "target_dim": 1}, {"num_classes": 1}, {"target_dim": 0}])
def test_wrong_options_fail_before_anything_runs(llama, options):
    with pytest.raises(ValueError), record(llama[0], **options):
        raise AssertionError("the block must not run")
    assert hooks(llama[0]) == 0


def test_unknown_sites_and_empty_recordings(llama):
    model, batch = llama
    with pytest.raises(ValueError, match="nearest: model.norm"), record(model, "model.nrom", num_classes=CLASSES):
        model(**batch)
    with pytest.warns(UserWarning, match="no forward call") as told, record(model, num_classes=CLASSES):
        pass
    assert [each.filename for each in told] == [__file__]
    assert hooks(model) == 0


def test_rows_that_are_not_finite_are_counted_at_every_site(llama):
    model, batch = llama
    model.model.layers[0].input_layernorm.weight.data[0] = float("nan")
    with record(model, num_classes=CLASSES, nonfinite="skip") as moments, torch.no_grad():
        model(**batch)
    assert all(m.count == 0 and m.skipped > 0 for m in moments.values()) and len(moments) == 4
