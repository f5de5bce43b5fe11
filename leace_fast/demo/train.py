"""Train the demo's language model on the installed standard library: `python -m leace_fast.demo.train`.

The schedule follows the clock, so that `--minutes` says what it costs on any
machine: short windows first, longer ones later, a linear decay to zero.
"""

from __future__ import annotations

import argparse
import copy
import math
import platform
import shutil
import sysconfig
import time
from pathlib import Path

import torch
from torch import Tensor

from .._extras import optional
from ..data import batched
from ..evaluation import batch_nats, bits_per_byte
from ._corpus import ASSETS, Module, is_test, label_characters, save_modules, split_library
from ._language_model import START_ID, train_tokenizer, windows

with optional("training the demo's model needs transformers"):
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 4000
CONTEXT = 1024
TOKENS_PER_STEP = 16384
MICRO_BATCH = 8192  # tokens in one forward and backward pass
# (share of the time, window length): attention over long windows costs most of a step on a CPU.
PHASES = ((0.55, 256), (0.85, 512), (1.0, CONTEXT))
WARM_UP = 0.02
DECAY_FROM = 0.35


def model_config() -> LlamaConfig:
    """Return the configuration: 4.0 million parameters, 5 layers, tied embeddings."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=START_ID,
        eos_token_id=START_ID,
        pad_token_id=START_ID,
    )


class TokenStream:
    """An endless stream of token windows: files in a new order each epoch, library files twice."""

    def __init__(self, modules: list[Module], tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> None:
        encoded = tokenizer([m.text for m in modules], add_special_tokens=False, verbose=False)["input_ids"]
        self.files = [torch.tensor([START_ID, *ids]) for ids in encoded]
        self.files += [file for file, m in zip(self.files, modules, strict=True) if not is_test(m.name)]
        self.generator = torch.Generator().manual_seed(seed)
        self.tokens, self.at, self.epochs = torch.empty(0, dtype=torch.int64), 0, 0

    def take(self, rows: int, length: int) -> Tensor:
        """Return the next (rows, length) tokens."""
        need = rows * length
        if self.at + need > len(self.tokens):
            order = torch.randperm(len(self.files), generator=self.generator)
            self.tokens = torch.cat([self.tokens[self.at :], *(self.files[i] for i in order)])
            self.at, self.epochs = 0, self.epochs + 1
        taken = self.tokens[self.at : self.at + need].view(rows, length)
        self.at += need
        return taken


def learning_rate_factor(progress: float) -> float:
    """Return the share of the peak learning rate at a share of the time."""
    if progress < WARM_UP:
        return (progress + 1e-4) / WARM_UP
    return min(1.0, (1 - progress) / (1 - DECAY_FROM))


def train_model(model: LlamaForCausalLM, stream: TokenStream, minutes: float, out: Path) -> dict[str, float]:
    """Train in place for a number of minutes, leaving a copy in `out` now and then; return what was done."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = (
        torch.optim.Muon(matrices, lr=4e-3, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0),
    )
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]

    @torch.compile(dynamic=False)
    def loss_of(tokens: Tensor) -> Tensor:
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        logits = hidden[:, :-1] @ model.lm_head.weight.T
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    start, step, seen, running = time.monotonic(), 0, 0, math.nan
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        length = next(length for until, length in PHASES if progress < until)
        total = 0.0
        for _ in range(TOKENS_PER_STEP // MICRO_BATCH):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(stream.take(MICRO_BATCH // length, length))
            (loss * (MICRO_BATCH / TOKENS_PER_STEP)).backward()
            total += loss.item() * MICRO_BATCH / TOKENS_PER_STEP
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * learning_rate_factor(progress)
            optimizer.step()
            optimizer.zero_grad()
        step, seen = step + 1, seen + TOKENS_PER_STEP
        running = total if math.isnan(running) else 0.98 * running + 0.02 * total
        if step % 500 == 0:
            save(model, out)
        if step % 25 == 0:
            rate = seen / (time.monotonic() - start)
            print(f"{progress:6.1%}  step {step}  epoch {stream.epochs}  loss {running:.4f}  {rate:.0f} tokens/s")
    return {"steps": step, "tokens": seen, "epochs": stream.epochs, "train_loss_nats": running}


def save(model: LlamaForCausalLM, path: Path) -> None:
    """Save a bfloat16 copy."""
    copy.deepcopy(model).bfloat16().save_pretrained(path)


def score(model_path: Path, held_out: list[Module], tokenizer: PreTrainedTokenizerFast) -> float:
    """Return bits per byte of the saved model on whole modules, each token scored once."""
    model = AutoModelForCausalLM.from_pretrained(model_path).float().eval()
    nats = 0.0
    for module in held_out:
        pieces = list(windows(module, tokenizer, CONTEXT, stride=CONTEXT // 2))
        nats += sum(batch_nats(model, batch) for batch in batched(pieces, 8, START_ID))
    return bits_per_byte(nats, sum(len(module.text.encode()) for module in held_out))


def write_card(path: Path, facts: dict[str, object]) -> None:
    """Fill the model card's template with what was measured, and put Python's licence beside it."""
    template = (Path(__file__).parent / "model_card.md").read_text(encoding="utf-8")
    path.joinpath("README.md").write_text(template.format(**facts), encoding="utf-8")
    licence = Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"
    if licence.exists():
        shutil.copyfile(licence, path / "LICENSE-PYTHON.txt")


def main() -> None:
    """Train, save, score and describe the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)

    train_modules, held_out = split_library()
    held_out = [Module(m.name, m.text, label_characters(m.text)) for m in held_out]
    save_modules(held_out, options.out / "held_out.jsonl.gz")
    tokenizer = train_tokenizer([m.text for m in train_modules], VOCABULARY)
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(options.out / "model")
    stream = TokenStream(train_modules, tokenizer, options.seed)
    text_bytes = sum(len(m.text.encode()) for m in train_modules)
    print(f"{len(train_modules)} training files, {text_bytes / 1e6:.1f} MB; {len(held_out)} held-out modules")

    model = LlamaForCausalLM(model_config())
    done = train_model(model, stream, options.minutes, options.out / "model")
    save(model, options.out / "model")
    facts = {
        "python": platform.python_version(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "minutes": options.minutes,
        "train_files": len(train_modules),
        "train_bytes": text_bytes,
        "held_out_modules": len(held_out),
        "held_out_bytes": sum(len(m.text.encode()) for m in held_out),
        "bits_per_byte": score(options.out / "model", held_out, tokenizer),
        **done,
    }
    print(facts)
    write_card(options.out / "model", facts)


if __name__ == "__main__":
    main()
