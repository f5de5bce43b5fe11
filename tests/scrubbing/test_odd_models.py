"""Models that share between layers, keep a state, draw at random or change what they are given."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny_models
import torch
from labelled_models import labelled_batches
from torch import Tensor, nn

from leace_fast import Eraser, Scrubber, evaluate, find_sites, fold_, fold_residual_, scrub
from leace_fast.models import hidden_of

MODES = ("sequential", "parallel")


class Leaves(nn.Sequential):
    """A layer that leaves what it returns in a dict, as keys and values are."""

    def __init__(self, left: dict[int, Tensor]) -> None:
        super().__init__(nn.LayerNorm(8), nn.Linear(8, 8))
        self.left = left

    def forward(self, x: Tensor) -> Tensor:
        self.left[len(self.left)] = output = super().forward(x)
        return output


class Layers(nn.Module):
    """Three layers with a residual stream; what a kind does beside is odd."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.count = kind, 0
        self.left: dict[int, Tensor] = {}
        self.layers = nn.ModuleList(Leaves(self.left) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "changes its input":
            x.mul_(2)
        elif self.kind == "draws":
            x = x + torch.randn_like(x)
        elif self.kind == "counts":
            self.count += 1
            x = x + self.count * torch.linspace(-1, 1, 8)
        self.left.clear()
        for index, layer in enumerate(self.layers):
            x = x + layer(x)
            if self.kind == "shares" and index:
                x = x + self.left[0].roll(1, -1)
        return x


def batches(count: int = 6) -> list[dict[str, Tensor]]:
    made = []
    for seed in range(count):
        x, y = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(seed)), (torch.arange(4) + seed) % 2
        made.append({"x": x + y[:, None, None], "concept_labels": y})
    return made


def gap(model: nn.Module, scrubber: Scrubber, data: list[dict[str, Tensor]]) -> float:
    """The distance of the class means at the worst site of the erased model, over the spread of its rows."""
    modules, rows = dict(model.named_modules()), {site: [] for site in scrubber}  # type: ignore[var-annotated]
    handles = []
    with scrubber.attached(model), torch.no_grad():
        for site in scrubber:
            keep = rows[site].append
            handles.append(modules[site].register_forward_hook(lambda m, a, out, keep=keep: keep(hidden_of(out))))
        for batch in data:
            model(**{name: value.clone() for name, value in batch.items() if name != "concept_labels"})
    for handle in handles:
        handle.remove()
    worst = 0.0
    for each in rows.values():
        y = torch.cat([_labels_of(x, batch["concept_labels"]) for x, batch in zip(each, data, strict=True)])
        x = torch.cat([x.reshape(-1, x.shape[-1]) for x in each]).double()
        means = torch.stack([x[y == label].mean(0) for label in y.unique()])
        worst = max(worst, float((means - means.mean(0)).norm() / x.var(0).sum().sqrt()))
    return worst


def _labels_of(x: Tensor, labels: Tensor) -> Tensor:
    """The label of each row of a site's output (batch, ..., width) or (batch * length, width)."""
    rows = x.numel() // x.shape[-1]
    return labels.reshape(-1).repeat_interleave(rows // labels.numel())


@pytest.mark.parametrize("mode", MODES)
def test_what_a_layer_leaves_elsewhere_is_there_for_later_ones(mode: Any) -> None:
    model, data = Layers("shares"), batches()
    if mode == "parallel":
        assert list(scrub(model, data, mode=mode)) == ["layers.0.0", "layers.1.0", "layers.2.0"]
        return
    with pytest.warns(UserWarning, match="all batches run from the start for each of 3 sites"):
        scrubber = scrub(model, data, mode=mode)
    assert gap(model, scrubber, data) < 1e-5


def test_keys_and_values_that_layers_share() -> None:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "Gemma3nTextConfig"):
        pytest.skip("needs Gemma 3n")
    sizes = tiny_models.TABLE["gemma3"][2] | {
        "num_hidden_layers": 4,
        "intermediate_size": [24] * 4,
        "sliding_window": 4,
    }
    sizes |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2, "laurel_rank": 4}
    sizes |= {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "altup_num_inputs": 2}
    torch.manual_seed(0)
    config = transformers.Gemma3nTextConfig(**sizes, activation_sparsity_pattern=[0.0] * 4)
    model, data = transformers.Gemma3nForCausalLM(config).eval(), labelled_batches("llama", 4)
    data = [{name: each for name, each in batch.items() if name != "attention_mask"} for batch in data]
    with pytest.warns(UserWarning, match="run from the start"):
        scrubber = scrub(model, data, "model.layers.*.input_layernorm")
    assert len(scrubber) == 4 and gap(model, scrubber, data) < 1e-4
    with pytest.raises(ValueError, match="router_norm' ran 2 times"):
        scrub(model, data)


@pytest.mark.parametrize("kind", ["draws", "counts"])
def test_a_model_that_never_gives_the_same_is_fitted_in_parallel_alone(kind: str) -> None:
    model = Layers(kind)
    with pytest.raises(ValueError, match='mode="parallel" needs no stops'):
        scrub(model, batches())
    assert len(scrub(model, batches(), mode="parallel")) == 3


@pytest.mark.parametrize("use", [*MODES, "find_sites", "evaluate"])
def test_a_model_that_changes_its_inputs_changes_copies(use: Any) -> None:
    model, data = Layers("changes its input"), batches()
    kept = copy.deepcopy(data)
    if use == "find_sites":
        find_sites(model, data[0])
    elif use == "evaluate":
        evaluate(model, data)
    else:
        scrubber = scrub(model, data, mode=use)
        assert use == "parallel" or gap(model, scrubber, kept) < 1e-5
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(data, kept, strict=True))


@pytest.mark.parametrize("how", ["training", "dropout", "gradient checkpointing"])
@pytest.mark.parametrize("mode", MODES)
def test_training_changes_nothing(mode: Any, how: str) -> None:
    data = labelled_batches("llama", 3)
    alone = scrub(tiny_models.build("llama"), data, mode=mode)
    options: Any = {"attention_dropout": 0.5} if how == "dropout" else {}
    model = tiny_models.build("llama", **options).train()
    if how == "gradient checkpointing":
        model.gradient_checkpointing_enable()
    found = scrub(model, data, mode=mode)
    assert all(torch.equal(found[site].left, alone[site].left) for site in alone) and model.training


@pytest.mark.parametrize("batch", [(torch.ones(2, 3),), object(), 3], ids=["a tuple", "an object", "a number"])
def test_batches_that_are_no_mappings_are_refused(batch: Any) -> None:
    model = Layers("plain")
    for use in (lambda: scrub(model, [batch]), lambda: evaluate(model, [batch])):
        with pytest.raises(TypeError, match="batch 0 is a .*expected the model's inputs by name"):
            use()


def test_rows_of_images_beside_text_need_text_without_padding() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 64, "max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 1}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    model = transformers.CLIPModel(config).double().eval()
    data = []
    for seed in range(4):
        batch = tiny_models.batch("llama", 4, seed) | tiny_models.batch("vit", 4, seed)
        whole = torch.ones_like(batch["attention_mask"])
        data.append({**batch, "attention_mask": whole, "concept_labels": torch.arange(4) % 2})
    scrubber = scrub(model, data)
    towers = {site.partition(".")[0] for site in scrubber}
    assert towers == {"text_model", "vision_model"} and gap(model, scrubber, data) < 1e-8
    padded = [{**batch, "attention_mask": tiny_models.batch("llama", 4)["attention_mask"]} for batch in data]
    with pytest.raises(ValueError, match="'vision_model.*does not tell which of 5 rows are padding"):
        scrub(model, padded)
    with pytest.raises(ValueError, match="does not tell which of 5 rows are padding"):
        scrub(model, padded, mode="parallel")
    sites = "text_model.encoder.layers.*.layer_norm1"
    assert len(scrub(model, padded, sites)) == 2


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "wrapped"])
@pytest.mark.parametrize("mode", MODES)
def test_layers_that_are_compiled_one_by_one(mode: Any, in_place: bool) -> None:
    data, model = labelled_batches("llama", 3), tiny_models.build("llama")
    alone = scrub(tiny_models.build("llama"), data, mode=mode)
    for index, layer in enumerate(model.model.layers):
        if in_place:
            layer.compile(backend="eager")
        else:
            model.model.layers[index] = torch.compile(layer, backend="eager")
    found = scrub(model, data, mode=mode)
    assert [site.replace("._orig_mod", "") for site in found] == list(alone)
    assert all(torch.equal(a.left, b.left) for a, b in zip(found.values(), alone.values(), strict=True))
    assert len(evaluate(model, data).probes) == 4


def test_scripted_modules_are_refused() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)))
    data = [{"input": batch["x"], "concept_labels": batch["concept_labels"]} for batch in batches()]
    eraser = Eraser(torch.eye(8)[:, :1], torch.eye(8)[:1])
    for use in (
        lambda: scrub(scripted, data, "0"),
        lambda: scrub(scripted, data, "0", mode="parallel"),
        lambda: find_sites(nn.Sequential(scripted), data[0], "0"),
        lambda: fold_(scripted, {"0": eraser}, data[0]["input"]),
        lambda: fold_residual_(scripted, eraser, data[0]["input"]),
    ):
        with pytest.raises(ValueError, match="is a module of TorchScript"):
            use()
