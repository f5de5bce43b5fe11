"""GGUF files: what they hold, what is refused, and llama.cpp's log-probabilities of them beside transformers'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from llama_cpp import log_probabilities, tokens
from torch import Tensor, nn

import leace_fast as lf
from leace_fast import Eraser
from leace_fast.demo import ASSETS, load_language_model, load_modules
from leace_fast.erasers import digest_of_eraser
from leace_fast.folding import digest_of_weights
from leace_fast.integrations import inspect_file, write_gguf, write_lora_gguf
from leace_fast.integrations._gguf_tokenizer import GPT2, SPLITS

gguf: Any = pytest.importorskip("gguf", reason="GGUF files need gguf: pip install 'leace-fast[gguf]'")

MOST = 2e-4  # of log-probabilities
PROMPTS = [[5, 9, 33], [7, 7, 61, 12, 40, 3, 18, 22], list(range(3, 43))]


def next_token(model: nn.Module, prompts: list[list[int]]) -> Tensor:
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([p])).logits[0, -1].log_softmax(-1) for p in prompts])


def llama(name: str = "LlamaForCausalLM", **options: Any) -> Any:
    """A random model, of which no two heads and no half of a head are alike."""
    import transformers

    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 16,
        "tie_word_embeddings": False, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    kind: Any = getattr(transformers, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(kind.config_class(**{**sizes, **options}))
        for parameter in model.parameters():
            parameter.data.mul_(6.0) if parameter.ndim > 1 else parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def linear(scrubber: lf.Scrubber) -> lf.Scrubber:
    return lf.Scrubber({site: Eraser(e.left, e.right) for site, e in scrubber.items()})


def tensors_of(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


# ------------------------------------------------------------------ what the files hold


def test_a_folded_model_is_described(tmp_path: Path) -> None:
    model = llama()
    batch = {"input_ids": torch.tensor([PROMPTS[1]])}
    scrubber = scrubber_of_width(model, batch)
    scrubber.save_pretrained(tmp_path / "erasers")
    before = digest_of_weights(model)
    scrubber.fold_(model, batch, add_bias=True)
    write_gguf(model, tmp_path / "folded.gguf")
    told = inspect_file(tmp_path / "folded.gguf")
    assert told["kind"] == "GGUF model" and told["architecture"] == "llama" and told["way"] == "fold"
    assert told["base_model"]["sha256"] == before != digest_of_weights(model)
    erasers = inspect_file(tmp_path / "erasers")
    assert told["erasers"] == erasers["erasers"]
    for site, facts in told["sites"].items():
        assert facts["eraser"] == erasers["sites"][site]["digest"] and facts["offset"] == "kept"
        assert facts["operation"].endswith("b' = b + W L R mu")
    layers = told["sites"]["model.layers.1.input_layernorm"]["layers"]
    assert sorted(layers) == [f"model.layers.1.self_attn.{name}_proj" for name in "kqv"]
    found = tensors_of(tmp_path / "folded.gguf")
    assert len(found) == told["tensors"] == len(list(model.parameters()))
    assert found["blk.0.attn_q.bias"].data.tolist() != [0.0] * 64
    lf.unfold_(model)
    write_gguf(model, tmp_path / "clean.gguf")
    assert "sites" not in inspect_file(tmp_path / "clean.gguf")


def test_a_folded_stream_is_described(tmp_path: Path) -> None:
    model, batch = llama(), {"input_ids": torch.tensor([PROMPTS[1]])}
    eraser = next(iter(linear(scrubber_of_width(model, batch)).values()))
    lf.fold_residual_(model, eraser, batch)
    write_gguf(model, tmp_path / "folded.gguf")
    told = inspect_file(tmp_path / "folded.gguf")
    (facts,) = told["sites"].values()
    assert told["way"] == "fold_residual" and facts["eraser"] == digest_of_eraser(eraser)
    assert "model.embed_tokens" in facts["layers"] and "model.layers.1.mlp.down_proj" in facts["layers"]


def scrubber_of_width(model: Any, batch: dict[str, Tensor]) -> lf.Scrubber:
    """Random erasers with offsets at the norms that linear layers with a place for biases read."""
    from scrubbed_models import eraser_of

    sites = [site.name for site in lf.find_sites(model, batch) if "layers" in site.name]
    return lf.Scrubber({site: eraser_of(site, dim=model.config.hidden_size) for site in sites})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_matrices_keep_their_bits_and_vectors_are_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = llama().to(dtype)
    write_gguf(model, tmp_path / "model.gguf")
    found = tensors_of(tmp_path / "model.gguf")
    down, norm = found["blk.1.ffn_down.weight"], found["blk.1.ffn_norm.weight"]
    assert down.tensor_type.name == {2: "F16", 4: "F32"}[dtype.itemsize] or dtype == torch.bfloat16
    raw = torch.from_numpy(down.data.copy()).reshape(-1).view(torch.uint8)
    layer: Any = model.model.layers[1]
    assert torch.equal(raw, layer.mlp.down_proj.weight.detach().reshape(-1).view(torch.uint8))
    assert norm.tensor_type.name == "F32"


def test_an_adapter_is_described_and_scaled(tmp_path: Path) -> None:
    """Ranks that differ have an alpha of their own in PEFT, and one alpha in llama.cpp."""
    model, batch = llama(), {"input_ids": torch.tensor([PROMPTS[1]])}
    scrubber = linear(scrubber_of_width(model, batch))
    wide = Eraser(*(part.mT for part in (torch.eye(32)[:5], torch.eye(32)[:, :5])))
    scrubber = lf.Scrubber({**scrubber, "model.layers.0.input_layernorm": wide})
    scrubber.export_lora(model, tmp_path / "adapter", batch)
    write_lora_gguf(tmp_path / "adapter", tmp_path / "adapter.gguf", model.config)
    told = inspect_file(tmp_path / "adapter.gguf")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert told["kind"] == "GGUF adapter" and told["way"] == "lora" and len(told["sites"]) == 4
    assert {**inspect_file(tmp_path / "adapter"), "kind": 0, "rank": 0} == {
        **{name: value for name, value in told.items() if name != "architecture"}, "kind": 0, "rank": 0,
    }  # fmt: skip
    assert config["alpha_pattern"]
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    alpha = reader.fields["adapter.lora.alpha"].contents()
    found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    assert "blk.0.attn_output.weight.lora_a" not in found
    down, up = found["blk.0.attn_v.weight.lora_a"], found["blk.0.attn_v.weight.lora_b"]
    wanted = -model.model.layers[0].self_attn.v_proj.weight.detach() @ wide.left.float() @ wide.right.float()
    assert len(down) == 5 != alpha
    torch.testing.assert_close(alpha / len(down) * up @ down, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "record",
    ["[]", "{", '{"sites": []}', '{"sites": {"norm": {}}}', '{"sites": {"a": 1}}', '{"sites": {}, "sites": {}}'],
)
def test_a_crafted_record_is_refused(record: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_string("leace_fast", record)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"leace_fast": record})
    for name in ("model.gguf", "model.safetensors"):
        with pytest.raises(ValueError, match="the record of the erasers is damaged"):
            inspect_file(tmp_path / name)
    for header in ("[]", "{", "{}", '{"kind": 1}'):
        metadata = {"leace_fast": header, "sha256": "0" * 64}
        save_file({"x": torch.ones(1)}, tmp_path / "own.safetensors", metadata=metadata)
        with pytest.raises(ValueError, match="is damaged"):
            inspect_file(tmp_path / "own.safetensors")


# ------------------------------------------------------------------ what is refused


def refuse_bias_of_the_head(folder: Path) -> None:
    model = llama()
    model.lm_head.bias = nn.Parameter(torch.ones(64))
    write_gguf(model, folder / "model.gguf")


def refuse_lora_bias(folder: Path) -> None:
    model, batch = llama(), {"input_ids": torch.tensor([PROMPTS[1]])}
    scrubber_of_width(model, batch).export_lora(model, folder / "adapter", batch, lora_bias=True)
    write_lora_gguf(folder / "adapter", folder / "adapter.gguf", model.config)


def refuse_a_damaged_adapter(folder: Path) -> None:
    model, batch = llama(), {"input_ids": torch.tensor([PROMPTS[1]])}
    linear(scrubber_of_width(model, batch)).export_lora(model, folder / "adapter", batch)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"damaged")
    write_lora_gguf(folder / "adapter", folder / "adapter.gguf", model.config)


def refuse_another_model(**options: Any) -> Callable[[Path], None]:
    def call(folder: Path) -> None:
        model, batch = llama(), {"input_ids": torch.tensor([PROMPTS[1]])}
        linear(scrubber_of_width(model, batch)).export_lora(model, folder / "adapter", batch)
        write_lora_gguf(folder / "adapter", folder / "adapter.gguf", llama(**options).config)

    return call


def refuse_a_changed_config(**changes: Any) -> Callable[[Path], None]:
    def call(folder: Path) -> None:
        model, batch = llama(), {"input_ids": torch.tensor([PROMPTS[1]])}
        linear(scrubber_of_width(model, batch)).export_lora(model, folder / "adapter", batch)
        path = folder / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        write_lora_gguf(folder / "adapter", folder / "adapter.gguf", model.config)

    return call


REFUSED: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no module": (lambda f: write_gguf(3, f / "m.gguf"), TypeError, "int"),  # type: ignore[arg-type]
    "no model of transformers": (lambda f: write_gguf(nn.Linear(2, 2), f / "m.gguf"), ValueError, "no config"),
    "another family": (
        lambda f: write_gguf(tiny_models.build("gpt2", torch.float32), f / "m.gguf"),
        ValueError,
        "type 'gpt2' is not written as GGUF, those of llama, mistral, qwen2 are",
    ),
    "another activation": (lambda f: write_gguf(llama(hidden_act="gelu"), f / "m.gguf"), ValueError, "hidden_act is"),
    "a window": (
        lambda f: write_gguf(llama("MistralForCausalLM", sliding_window=8), f / "m.gguf"),
        ValueError,
        "sliding_window is 8",
    ),
    "heads of another width": (
        lambda f: write_gguf(llama("Qwen2ForCausalLM", use_sliding_window=False, head_dim=16), f / "m.gguf"),
        ValueError,
        "head_dim is 16, expected 8",
    ),
    "dynamic positions": (
        lambda f: write_gguf(
            llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), f / "m.gguf"
        ),
        ValueError,
        "rope_type is 'dynamic'",
    ),
    "a bias of the head": (refuse_bias_of_the_head, ValueError, "'lm_head.bias' has no name in llama.cpp's 'llama'"),
    "another dtype": (
        lambda f: write_gguf(llama(), f / "m.gguf", dtype=torch.float64),
        TypeError,
        "expected float32, float16 or bfloat16",
    ),
    "no folder": (lambda f: write_gguf(llama(), f / "none" / "m.gguf"), FileNotFoundError, "make it first"),
    "a tokenizer of another kind": (
        lambda f: write_gguf(llama(), f / "m.gguf", unigram()),
        ValueError,
        "no byte-level BPE but Unigram: pass tokenizer=None",
    ),
    "a tokenizer of another model": (
        lambda f: write_gguf(llama(vocab_size=100), f / "m.gguf", load_language_model(ASSETS)[1]),
        ValueError,
        "the model 100 tokens",
    ),
    "a LoRA with biases": (refuse_lora_bias, ValueError, "export it without --lora-bias, or fold with --add-bias"),
    "a damaged adapter": (refuse_a_damaged_adapter, ValueError, "is damaged"),
    "an adapter of a wider model": (refuse_another_model(hidden_size=64), ValueError, "for another model: at"),
    "an adapter of other heads": (refuse_another_model(num_key_value_heads=4), ValueError, "for another model: at"),
    "an adapter of a deeper model": (refuse_another_model(num_hidden_layers=1), ValueError, "in one of 1 blocks"),
    "an alpha of zero": (refuse_a_changed_config(lora_alpha=0), ValueError, "must hold positive numbers"),
    "an alpha that is none": (refuse_a_changed_config(lora_alpha="2"), ValueError, "lora_alpha is '2'"),
    "patterns that are none": (refuse_a_changed_config(alpha_pattern=[1]), ValueError, "expected an object"),
    "a scaled rank": (refuse_a_changed_config(use_rslora=True), ValueError, "use_rslora of"),
    "no adapter": (lambda f: write_lora_gguf(f, f / "m.gguf", llama().config), FileNotFoundError, "holds no adapter"),
}


def unigram() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", 0.0)])))


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    act, error, message = REFUSED[name]
    with pytest.raises(error, match=message.replace("(", r"\(")):
        act(tmp_path)
    assert not list(tmp_path.rglob("*.gguf")), "nothing half-written stays"


def test_a_way_to_split_that_llama_cpp_lacks_is_warned_of(tmp_path: Path) -> None:
    model, tokenizer = load_language_model(ASSETS)
    with pytest.warns(UserWarning, match="send prompts as token ids"):
        write_gguf(model, tmp_path / "model.gguf", tokenizer)
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))


# ------------------------------------------------------------------ llama.cpp


def run_everywhere(model: Any, scrubber: lf.Scrubber, folder: Path, prompts: list[list[int]], tokenizer: Any) -> None:
    """A folded model, one with biases and an adapter are what transformers makes of the same erasers."""
    batch = {"input_ids": torch.tensor([prompts[-1]])}
    clean = next_token(model, prompts)
    maps = linear(scrubber)
    with scrubber.attached(model):
        affine = next_token(model, prompts)
    with maps.attached(model):
        wanted = next_token(model, prompts)
    assert min((affine - clean).abs().max(), (wanted - clean).abs().max(), (affine - wanted).abs().max()) > 0.1
    write_gguf(model, folder / "clean.gguf", tokenizer)
    maps.export_lora(model, folder / "adapter", batch)
    write_lora_gguf(folder / "adapter", folder / "adapter.gguf", model.config)
    maps.fold_(model, batch)
    write_gguf(model, folder / "linear.gguf", tokenizer)
    lf.unfold_(model)
    scrubber.fold_(model, batch, add_bias=True)
    write_gguf(model, folder / "affine.gguf", tokenizer)
    for file, lora, expected in (
        ("clean", None, clean),
        ("linear", None, wanted),
        ("affine", None, affine),
        ("clean", folder / "adapter.gguf", wanted),
    ):
        distance = float((log_probabilities(folder / f"{file}.gguf", prompts, lora) - expected).abs().max())
        print(f"{file}{' with LoRA' if lora else ''}: {distance:.1e}")
        assert distance < MOST, (file, lora)


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama3": (
        "LlamaForCausalLM",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }  # fmt: skip
        },
    ),
    "mistral": ("MistralForCausalLM", {"sliding_window": None}),
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_of_each_family(name: str, tmp_path: Path) -> None:
    kind, options = FAMILIES[name]
    model = llama(kind, **options)
    scrubber = scrubber_of_width(model, {"input_ids": torch.tensor([PROMPTS[1]])})
    if name == "mistral":  # whose config has no flags for biases
        model, scrubber = llama(kind, **options), linear(scrubber)
        clean = next_token(model, PROMPTS)
        scrubber.fold_(model, {"input_ids": torch.tensor([PROMPTS[1]])})
        write_gguf(model, tmp_path / "model.gguf")
        got, wanted = log_probabilities(tmp_path / "model.gguf", PROMPTS), next_token(model, PROMPTS)
        assert (got - wanted).abs().max() < MOST < 0.1 < (wanted - clean).abs().max()
        return
    run_everywhere(model, scrubber, tmp_path, PROMPTS, None)


@pytest.mark.nightly
@pytest.mark.parametrize("split", [GPT2, *SPLITS.values()])
@pytest.mark.filterwarnings("error::UserWarning")
def test_llama_cpp_finds_the_same_tokens(split: str, tmp_path: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    odd = "It's 12345 o'clock; we'LL go\n\n  x\t\ty  \nnaïve café — 3.14159"
    texts = [odd, *(module.text[:2000] for module in load_modules(ASSETS / "held_out.jsonl.gz")[:5])]
    parts = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split == GPT2)]
    parts = [*(pre_tokenizers.Split(Regex(r), "isolated") for r, name in SPLITS.items() if name == split), *parts]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts) if len(parts) > 1 else parts[0]  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<|end|>"], initial_alphabet=alphabet)  # type: ignore[call-arg]
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", bos_token="<|end|>")
    write_gguf(llama(vocab_size=len(tokenizer) + 7), tmp_path / "model.gguf", tokenizer)
    texts.append("a <|end|> b")
    assert tokens(tmp_path / "model.gguf", texts) == [tokenizer(text).input_ids for text in texts]


@pytest.mark.nightly
def test_llama_cpp_of_qwen2_with_its_biases(tmp_path: Path) -> None:
    model = llama("Qwen2ForCausalLM", use_sliding_window=False, head_dim=8)
    scrubber = scrubber_of_width(model, {"input_ids": torch.tensor([PROMPTS[1]])})
    attention = lf.Scrubber({site: e for site, e in scrubber.items() if "input" in site})
    clean = next_token(model, PROMPTS)
    attention.fold_(model, {"input_ids": torch.tensor([PROMPTS[1]])})
    write_gguf(model, tmp_path / "model.gguf")
    got, wanted = log_probabilities(tmp_path / "model.gguf", PROMPTS), next_token(model, PROMPTS)
    assert (got - wanted).abs().max() < MOST < 0.1 < (wanted - clean).abs().max()


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:llama.cpp splits text", "ignore:.*rows are few", "ignore:the output is")
def test_llama_cpp_of_the_demo(tmp_path: Path) -> None:
    model, tokenizer = load_language_model(ASSETS)
    model = model.float()
    ids = (
        tokenizer(load_modules(ASSETS / "held_out.jsonl.gz")[0].text, return_tensors="pt")
        .input_ids[0, :2048]
        .reshape(16, 128)
    )
    batch = {"input_ids": ids, "concept_labels": (ids % 7 == 0).long() + (ids % 5 == 0).long()}
    scrubber = lf.scrub(model, [batch])
    prompts = [ids[3, :40].tolist(), ids[5, :7].tolist(), ids[9].tolist()]
    run_everywhere(model, scrubber, tmp_path, prompts, tokenizer)
