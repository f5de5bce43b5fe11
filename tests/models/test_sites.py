"""Sites of a table of architectures."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import tiny_models
import torch
import transformers
from tiny_models import state_of
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from leace_fast.models import Site, find_sites, resolve_sites, submodules


def names_of(layer: str, norms: tuple[str, ...], layers: int = 2) -> list[str]:
    return [f"{layer}.{i}.{norm}" for i in range(layers) for norm in norms]


LLAMA = names_of("model.layers", ("input_layernorm", "post_attention_layernorm"))
GEMMA = names_of("model.layers", ("input_layernorm", "pre_feedforward_layernorm"))
BERT = names_of("bert.encoder.layer", ("attention.output.LayerNorm", "output.LayerNorm"))
T5 = [f"encoder.block.{i}.layer.{j}.layer_norm" for i in range(2) for j in range(2)]
EXPECTED = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,  # q_norm and k_norm are read by no linear layer
    "mixtral": LLAMA,  # read by the router and the fused experts
    "gemma2": GEMMA,  # the norms after attention and MLP are only added to the residual
    "gemma3": GEMMA,
    "phi": names_of("model.layers", ("input_layernorm",)),
    "gpt_neox": names_of("gpt_neox.layers", ("input_layernorm", "post_attention_layernorm")),
    "gpt2": names_of("transformer.h", ("ln_1", "ln_2")),
    "opt": names_of("model.decoder.layers", ("self_attn_layer_norm", "final_layer_norm")),
    "falcon": names_of("transformer.h", ("input_layernorm",)),
    "bert": ["bert.embeddings.LayerNorm", *BERT[:-1]],  # the last output is read by the head only
    "t5": [
        *T5,
        "encoder.final_layer_norm",  # cross-attention reads it
        *(f"decoder.block.{i}.layer.{j}.layer_norm" for i in range(2) for j in range(3)),
    ],
    "vit": names_of("layers", ("layernorm_before", "layernorm_after")),
}


def test_the_table_is_tiny_and_covered():
    assert set(EXPECTED) == set(tiny_models.ARCHITECTURES)
    assert all(sum(p.numel() for p in tiny_models.build(name).parameters()) < 100_000 for name in tiny_models.TABLE)


@pytest.mark.parametrize("name", tiny_models.ARCHITECTURES)
def test_sites_of_an_architecture(name):
    model, batch = tiny_models.build(name), tiny_models.batch(name)
    assert [site.name for site in find_sites(model, batch)] == EXPECTED[name]


@pytest.mark.parametrize("name", tiny_models.ARCHITECTURES)
def test_readers_are_exactly_the_modules_with_weights_that_get_the_output(name):
    model, batch = tiny_models.build(name), tiny_models.batch(name)
    sites = find_sites(model, batch)
    wanted, outputs, inputs = submodules(model, [site.name for site in sites]), {}, {}
    for key, module in wanted.items():
        module.register_forward_hook(lambda m, a, o, key=key: outputs.update({key: o}))
    for key, module in model.named_modules():
        if any(p.ndim > 1 for p in module.parameters(recurse=False)):
            module.register_forward_pre_hook(
                lambda m, a, k, key=key: inputs.update({key: (*a, *k.values())}), with_kwargs=True
            )
    with torch.no_grad():
        model(**batch)
    for site in sites:
        output = outputs[site.name]
        assert site.width == tiny_models.WIDTH == output.shape[-1]
        same = {
            key
            for key, tensors in inputs.items()
            if any(
                isinstance(t, torch.Tensor)
                and t.numel() == output.numel()
                and torch.equal(t.reshape(output.shape), output)
                for t in tensors
            )
        }
        assert set(site.readers) == same and len(set(site.readers)) == len(site.readers)


def test_readers_of_a_layer():
    sites = find_sites(tiny_models.build("gpt2"), tiny_models.batch("gpt2"))
    assert [site.readers for site in sites[:2]] == [("transformer.h.0.attn.c_attn",), ("transformer.h.0.mlp.c_fc",)]


def test_names_patterns_and_lists():
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama")

    def found(sites):
        return [site.name for site in find_sites(model, batch, sites)]

    assert found("model.norm") == ["model.norm"]
    assert found("model.layers.*.mlp") == ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert found("*input_layernorm") == LLAMA[::2]
    assert found(["model.norm", "norms"]) == [*LLAMA, "model.norm"]
    assert found(["model.norm", "model.embed_tokens", "model.norm"]) == ["model.embed_tokens", "model.norm"]
    assert find_sites(model, batch, ["norms"]) == find_sites(model, batch)
    assert find_sites(model, batch, "model.norm")[0].readers == ("lm_head",)


def test_labels_are_dropped_and_a_tensor_is_an_example():
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama")
    sites = find_sites(model, {**batch, "concept_labels": torch.zeros(3, tiny_models.LENGTH)})
    assert sites == find_sites(model, batch["input_ids"])


def test_dropout_hides_no_reader_and_modes_come_back():
    model = tiny_models.build("bert")
    model.train()
    model.bert.encoder.layer[0].eval()
    before = state_of(model)
    assert [site.name for site in find_sites(model, tiny_models.batch("bert"))] == EXPECTED["bert"]
    assert state_of(model) == before
    assert any(training for training, *_ in before) and not all(training for training, *_ in before)


@pytest.mark.parametrize("example", [{"input_ids": torch.zeros(1, 40, dtype=torch.int64) + 99}, 3, {"nothing": 1}])
def test_a_failed_pass_leaves_the_model_as_it_was(example):
    model = tiny_models.build("gpt2").train()
    before = state_of(model)
    with pytest.raises((IndexError, TypeError, ValueError)):
        find_sites(model, example)
    assert state_of(model) == before


def test_a_shared_module_is_refused_by_name():
    model, batch = tiny_models.build("albert"), tiny_models.batch("albert")
    shared = "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.LayerNorm"
    with pytest.raises(ValueError, match=f"'{shared}' ran 2 times"):
        find_sites(model, batch)
    with pytest.raises(ValueError, match="ran 2 times"):
        find_sites(model, batch, "*full_layer_layer_norm")
    assert [s.name for s in find_sites(model, batch, "albert.embeddings.LayerNorm")] == ["albert.embeddings.LayerNorm"]


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ("model.layers.0.input_layernrom", "nearest: model.layers.0.input_layernorm"),
        (["norms", "modle.norm"], "no site 'modle.norm' in this model; the nearest: model.norm"),
        ("model.layers.*.input_norm", "no site 'model.layers.*.input_norm'"),
        ("model", "its output is a BaseModelOutputWithPast, expected one float tensor"),
        ("model.layers", "the example did not run it"),
        ("model.layer?", "no module that matches"),
        ([], "sites must be"),
        ([3], "sites must be"),
    ],
)
def test_wrong_names(sites, message):
    model = tiny_models.build("llama")
    with pytest.raises(ValueError) as error:
        find_sites(model, tiny_models.batch("llama"), sites)
    assert message in str(error.value)


def test_nothing_found_says_what_was_seen():
    with pytest.raises(ValueError, match="seen: no norm"):
        find_sites(nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4))
    outside = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))  # a norm and a head, but no stack of layers
    with pytest.raises(ValueError, match=r"no norm of this Sequential .* seen: 0 \(read by 1\)"):
        find_sites(outside, torch.ones(2, 4))


class Heads(nn.Module):
    """One layer with a norm per head, a double reader and one of a slice; then a final norm that several heads read."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.ModuleDict({"norm": nn.LayerNorm(4), "up": nn.Linear(4, 4)})
        block.update({"inner": nn.LayerNorm(2), "joined": nn.Linear(4, 2), "first": nn.Linear(4, 4)})
        self.layers = nn.ModuleList([block])
        self.norm, self.heads = nn.LayerNorm(4), nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        block: Any = self.layers[0]
        hidden = block["norm"](x)
        x = x + block["up"](hidden.reshape(-1, 4)).reshape(x.shape) + block["up"](hidden)
        x = x + block["first"](hidden[:, :1])
        heads = block["inner"](x.reshape(-1, 2, 2))  # per head: joined to full width before it is read
        hidden = self.norm(x + block["joined"](heads.reshape(x.shape)).repeat(1, 1, 2))
        return torch.stack([head(hidden) for head in self.heads])


def test_heads_and_norms_per_head_are_no_sites():
    batch = {"x": torch.randn(2, 3, 4), "concept_labels": torch.zeros(2)}  # a model without **kwargs
    assert find_sites(Heads(), batch) == [Site("layers.0.norm", 4, ("layers.0.up",))]


class WrappedNorm(nn.Module):
    """Hands on the output of an inner norm."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_norms_inside_a_low_rank_attention_are_sites_by_name_alone():
    model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**tiny_models.LATENT)).eval()
    batch = {"input_ids": torch.arange(10)[None]}
    inner = [f"model.layers.{n}.self_attn.{norm}" for n in range(2) for norm in ("q_a_layernorm", "kv_a_layernorm")]
    sites = {site.name for site in find_sites(model, batch)}
    assert len(sites) == 4 and not sites & set(inner)
    assert [site.name for site in find_sites(model, batch, "*_a_layernorm")] == inner


def test_one_tensor_is_one_site_and_a_sequence_of_blocks_is_a_stack():
    model = nn.Sequential(*(nn.Sequential(WrappedNorm(), nn.Linear(4, 4)) for _ in range(2)), nn.Linear(4, 2))
    sites = find_sites(model, torch.randn(2, 3, 4))
    assert sites == [Site("0.0.inner", 4, ("0.1",)), Site("1.0.inner", 4, ("1.1",))]


class Mixer(nn.Module):
    """Multiplies its input by a mask or a number, or rounds it, before it reads it, as state space models do."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act, self.up = act, nn.Linear(4, 4).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.act(x).double())


MASK = torch.ones(2, 3, 1).index_fill(1, torch.tensor([2]), 0)
ACTS = {
    "mask": lambda x: x * MASK,
    "mask first": lambda x: MASK * x,
    "filled": lambda x: x.masked_fill(MASK == 0, 0.0),
    "number": lambda x: (0.5 * x).to(torch.bfloat16),
    "columns": lambda x: x * torch.arange(4.0),  # other directions: an eraser is no longer one in front of the layer
}


@pytest.mark.parametrize("name", ACTS)
def test_rows_that_are_masked_or_cast_are_still_read(name):
    model = nn.Sequential(*(nn.Sequential(nn.LayerNorm(4).to(torch.float32), Mixer(ACTS[name])) for _ in range(2)))
    for mixer in model.children():
        assert isinstance(mixer, nn.Sequential)
        mixer.append(nn.Module())
        mixer[2].forward = lambda x: x.float()  # type: ignore[method-assign]
    if name == "columns":
        with pytest.raises(ValueError, match="choose sites='residual', 'attention_out', 'mlp_out'"):
            find_sites(model, torch.randn(2, 3, 4))
    else:
        sites = find_sites(model, torch.randn(2, 3, 4))
        assert sites == [Site("0.0", 4, ("0.1.up",)), Site("1.0", 4, ("1.1.up",))]


@pytest.mark.parametrize("rows", [1, 3])
def test_norms_of_a_hybrid_do_not_depend_on_the_batch(rows):
    """Linear attention multiplies its input by the mask where a batch has several rows."""
    widths: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "state_size": 4,
        "num_hidden_layers": 2,
        "vocab_size": 64,
    }
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**widths)).eval()
    batch = {name: value[:rows] for name, value in tiny_models.batch("llama").items()}
    found = [site.name for site in find_sites(model, batch)]
    assert found == ["backbone.layers.0.norm", "backbone.layers.1.norm"]


def test_a_name_inside_what_was_compiled():
    compiled = nn.ModuleDict({"_orig_mod": tiny_models.build("llama")})
    with pytest.raises(ValueError, match="no site 'model.norm' in what torch.compile returned: pass the model it"):
        submodules(compiled, ["model.norm"])


class WatchedNorm(nn.LayerNorm):
    """A norm that counts how many of its kind's outputs are alive."""

    outputs: ClassVar[list[StorageWeakRef]] = []
    most = 0

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        self.outputs.append(StorageWeakRef(output.untyped_storage()))
        WatchedNorm.most = max(WatchedNorm.most, sum(not each.expired() for each in self.outputs))
        return output


@pytest.mark.parametrize("sites", ["norms", "residual", "mlp_out"])
def test_the_trace_holds_no_activations(sites):
    model = nn.Sequential(*[nn.Sequential(WatchedNorm(8), nn.Linear(8, 8)) for _ in range(6)])
    WatchedNorm.outputs.clear()
    WatchedNorm.most = 0
    assert len(find_sites(model, torch.ones(1, 5, 8), sites)) == 6
    assert len(WatchedNorm.outputs) >= 6 and WatchedNorm.most <= 2


def test_sites_are_resolved_by_one_rule() -> None:
    model = nn.Sequential(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), nn.Sequential(nn.LayerNorm(4)))
    x = torch.ones(1, 4)
    found = find_sites(model, x)
    assert resolve_sites(model, x, "norms") == resolve_sites(model, x, ["0.0"]) == found
    assert resolve_sites(model, x, iter(["0.0"])) == found
    chosen = [Site("1.0", 4), Site("0.0", 4)]
    assert resolve_sites(model, {}, iter(chosen)) == chosen, "nothing runs for sites that are known"
    for wrong in ([], [Site("1.0", 4), "0.0"], "absent"):
        with pytest.raises(ValueError, match="expected norms|must be norms"):
            resolve_sites(model, x, wrong)  # type: ignore[arg-type]
