"""Models, and changes of models, in which erasers would not act."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leace_fast import Eraser, Scrubber
from refused.refusal import Refusal

TITLE = "Attaching erasers, and running models that have them"


class Net(nn.Module):
    """A norm and a head; what it does with the norm can be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 4)
        self.normed: Callable[[Any, Tensor], Tensor] = lambda net, x: net.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.normed(self, x))


def scrubber(*sites: str) -> Scrubber:
    return Scrubber({site: Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1]) for site in sites})


def after(change: Callable[[Any], Any], site: str = "norm") -> Callable[[Path], Any]:
    """Attaches, runs, changes the model, and runs again."""

    def call(folder: Path) -> None:
        model, x = Net(), torch.randn(2, 4)
        scrubber(site).attach_(model)
        model(x)
        change(model)
        model(x)

    return call


def functional(net: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, (4,), net.norm.weight, net.norm.bias)


def adapter(base: nn.Module) -> nn.Module:
    wrapper: Any = nn.Module()
    wrapper.base = base
    wrapper.forward = lambda x: wrapper.base(x) + x
    return wrapper


def on_meta(folder: Path) -> None:
    with torch.device("meta"):
        model = Net()
    scrubber("norm").attach_(model)


def scripted(folder: Path) -> None:
    scrubber("norm").attach_(torch.jit.trace(Net(), torch.randn(2, 4)))  # type: ignore[arg-type]


def taken_apart(folder: Path) -> None:
    model: Any = Net()
    model.norm.compatibility_mode, model.norm.original_component = True, nn.LayerNorm(4)
    scrubber("norm").attach_(model)


def attention(folder: Path) -> None:
    model, x = nn.MultiheadAttention(4, 2), torch.randn(3, 2, 4)
    with scrubber("out_proj").attached(model):
        model(x, x, x)


def recomputed(detach_first: bool) -> Callable[[Path], Any]:
    def call(folder: Path) -> None:
        model, erasers = Recomputing(), scrubber("net.norm")
        if detach_first:
            erasers.attach_(model)
        loss = model(torch.randn(2, 4, requires_grad=True)).sum()
        if detach_first:
            erasers.detach_(model)
        else:
            erasers.attach_(model)
        loss.backward()

    return call


class Recomputing(nn.Module):
    """A net that the backward pass computes again."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.net, x, use_reentrant=True)


def set_back(model: Any) -> None:
    model.norm.__class__ = nn.LayerNorm


def patch_site(model: Any) -> None:
    model.norm.forward = lambda x: x


def patch_model(model: Any) -> None:
    model.forward = lambda x: functional(model, x)


REFUSALS = [
    Refusal(
        "weights of a site that are read without calling it",
        "a fused kernel, or `functional` code, would compute what no eraser has seen",
        after(lambda model: setattr(model, "normed", functional)),
        "the model ran without being erased at 'norm': this forward pass does not call that module",
        RuntimeError,
    ),
    Refusal(
        "a site that a pass leaves out, though the module that holds it runs",
        "rows would go on that were not erased; whole stages, and some items of a list, may be left out",
        after(lambda model: setattr(model, "normed", lambda net, x: x)),
        "the model ran without being erased at 'norm': this forward pass does not call that module",
        RuntimeError,
    ),
    Refusal(
        "another module in the place of a site",
        "it has no eraser; attach again",
        after(lambda model: setattr(model, "norm", nn.LayerNorm(4))),
        "another module has taken the place of the one that the eraser was attached to",
        RuntimeError,
    ),
    Refusal(
        "an adapter that comes round a site after attaching",
        "what it adds is not erased; attach again, then all that the site returns is",
        after(lambda model: setattr(model, "head", adapter(model.head)), "head"),
        "another module has taken the place of the one that the eraser was attached to",
        RuntimeError,
    ),
    Refusal(
        "a site whose type is set back",
        "its own `forward` would run, which does not erase",
        after(set_back),
        "the module's type was set back",
        RuntimeError,
    ),
    Refusal(
        "a `forward` set on a site after attaching",
        "it would run in the place of the one that erases; attach again",
        after(patch_site),
        "the module's forward was replaced after the eraser was attached; attach it again",
        RuntimeError,
    ),
    Refusal(
        "a `forward` set on the model after attaching",
        "it may go round the sites; attach again",
        after(patch_model),
        "the module's forward was replaced after the eraser was attached; attach it again",
        RuntimeError,
    ),
    Refusal(
        "the output projection of `nn.MultiheadAttention`",
        "torch reads its weights and never calls it; choose the attention itself as the site",
        attention,
        "without being erased at 'out_proj'",
        RuntimeError,
    ),
    Refusal(
        "a model on the device meta",
        "it has no weights: load them first; offloaded weights are taken",
        on_meta,
        "on the device meta, without numbers",
    ),
    Refusal(
        "a TransformerBridge in compatibility mode",
        "use `leace_fast.integrations.transformer_lens_hooks`",
        taken_apart,
        "norms put out other rows",
    ),
    Refusal(
        "a scripted or traced model",
        "it runs no Python; attach to the model that it was made of, then trace that",
        scripted,
        "in a scripted or traced module, which runs no Python",
    ),
    Refusal(
        "two names of one module",
        "it would be erased twice",
        lambda folder: scrubber("norm", "module.norm").attach_(Net()),
        "are one module here",
    ),
    Refusal(
        "a backward pass with reentrant checkpointing after detaching",
        "layers would be computed again without their erasers, and gradients would be wrong",
        recomputed(detach_first=True),
        "as they have been detached: call backward() while they are attached",
        RuntimeError,
    ),
    Refusal(
        "attaching between a forward pass with checkpointing and its backward pass",
        "layers would be computed again with erasers that they did not have",
        recomputed(detach_first=False),
        "which ran before erasers were attached to it: call backward() first",
        RuntimeError,
    ),
]
