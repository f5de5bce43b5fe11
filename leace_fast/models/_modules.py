"""Modules of any model: by name, on one batch, and the hidden states in what they return."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

F = TypeVar("F", bound=Callable[..., Any])
HOOKS = (  # the attributes of a module that hold them
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
LABELS = "concept_labels"  # the key of a batch that holds the labels of its tokens; no model sees it
GROUPS = "concept_groups"  # the key of the groups (texts, speakers) that they belong to; no model sees it either
LISTS = (nn.ModuleList, nn.Sequential)


def submodules(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """The modules of `model` by name; a ValueError offers the nearest names for one that it lacks."""
    known = dict(model.named_modules(remove_duplicate=False))
    for name in (names := list(names)):
        if name not in known:
            raise ValueError(unknown("site", name, known))
    return {name: known[name] for name in names}


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not among the `known` ones, with the nearest of these."""
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    if f"_orig_mod.{name}" in known:
        return f"no {kind} {name!r} in what torch.compile returned: pass the model it was made of, which it follows"
    return f"no {kind} {name!r} in this model" + (f"; the nearest: {', '.join(nearest)}" if nearest else "")


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter that is in memory (offloaded ones are on "meta"), the CPU without any.

    >>> device_of(nn.Linear(2, 2))
    device(type='cpu')
    """
    return next((parameter.device for parameter in model.parameters() if not parameter.is_meta), torch.device("cpu"))


def item_size(model: nn.Module) -> int:
    """Bytes of a number in the rows of a model, as its first parameter of floating dtype has them.

    >>> item_size(nn.Linear(2, 2))
    4
    """
    return next((each.element_size() for each in model.parameters() if each.is_floating_point()), 4)


def inputs_of(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What a model takes of a batch: all but the concept's labels and groups, the tensors copied to a device.

    Copied, as some models change their inputs in place: a batch is the caller's, and may be run again.

    >>> inputs_of({"x": torch.ones(1), "concept_labels": torch.zeros(1)}, torch.device("cpu"))
    {'x': tensor([1.])}
    """
    kept = without_labels(batch)
    return {name: value.to(device, copy=True) if isinstance(value, Tensor) else value for name, value in kept.items()}


def without_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch without the concept's labels and groups."""
    return {name: value for name, value in batch.items() if name not in (LABELS, GROUPS)}


def with_groups(batch: Mapping[str, Any], groups: str, index: int) -> Mapping[str, Any]:
    """A batch whose groups stand under `GROUPS`, and under no other name that a model would be given.

    Args:
        batch: inputs by name.
        groups: the name of the entry that holds its groups.
        index: number of the batch, for the error.

    Raises:
        ValueError: the entry has a name of its own, and the batch lacks it.

    >>> with_groups({"x": 1, "speaker": 2}, "speaker", 0)
    {'x': 1, 'concept_groups': 2}
    """
    if groups == GROUPS:
        return batch
    if groups not in batch:
        raise ValueError(f"batch {index} has no {groups!r}, which groups names: it has {', '.join(batch)}")
    return {**{name: value for name, value in batch.items() if name != groups}, GROUPS: batch[groups]}


def multiplies(dtype: torch.dtype) -> bool:
    """Tell whether torch has products of a dtype for this processor: without, 16-bit ones take many times as long."""
    checks = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    check = getattr(torch.ops.mkldnn, checks.get(dtype, ""), None)
    return dtype not in checks or (check is not None and bool(check()))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; each module gets its own mode back."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def with_hooks(hooks: Iterable[tuple[nn.Module, Callable[..., Any]]], **options: Any) -> Iterator[None]:
    """Calls each hook after the forward of its module, inside the block; options as of `register_forward_hook`."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook, **options).remove)
        yield


@contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    """Gives each module its type, mode and hooks back if the block fails.

    An interruption may come between a change and the block that undoes it, or while that undoes it.
    """
    before = [(each, type(each), each.training, [{*vars(each)[name]} for name in HOOKS]) for each in model.modules()]
    try:
        yield
    except BaseException:
        for module, kind, training, hooks in before:
            if type(module) is not kind:
                module.__class__ = kind
            module.training = training
            for name, known in zip(HOOKS, hooks, strict=True):
                for key in vars(module)[name].keys() - known:
                    del vars(module)[name][key]
        raise


@contextmanager
def eagerly() -> Iterator[None]:
    """Runs modules by Python inside the block: compiled code holds their own forwards, and would be compiled anew."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def uncompiled(function: F) -> F:
    """A function that compiled code calls and does not take in: bookkeeping would be compiled anew for each batch."""
    disabled: Any = torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function
    return disabled


@torch.no_grad()
def run_example(model: nn.Module, example: Mapping[str, Any] | Tensor) -> Any:
    """The output of one pass on a batch, as keywords or the one tensor, in evaluation mode; labels are dropped."""
    with evaluating(model):  # dropout would copy what the linear layers read
        if isinstance(example, Tensor):
            return model(example.clone())  # some models change their inputs in place
        if isinstance(example, Mapping):
            inputs = without_labels(example)
            return model(**{name: each.clone() if isinstance(each, Tensor) else each for name, each in inputs.items()})
    raise TypeError(f"example must be a batch (a dict) or a tensor, got {describe(example)}")


def check_module(model: Any) -> None:
    """Raise TypeError for a model that is no module, such as its name, and ValueError for one without its weights."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected a module: load it first")
    offloaded: set[nn.Module] = set()
    for prefix, module in model.named_modules():
        if hasattr(module, "_hf_hook"):  # of accelerate, which brings weights where they are needed
            offloaded.update(module.modules())
        if module in offloaded:
            continue
        for name, part in (*module.named_parameters(prefix, False), *module.named_buffers(prefix, False)):
            if part.is_meta:
                raise ValueError(
                    f"{name!r} is on the device meta, without numbers: this model was never loaded, or only a part of "
                    "it; load its weights first"
                )


def check_hooks(model: nn.Module) -> None:
    """Raise ValueError for a model with scripted modules, which take no hooks, so that nothing in it can be traced."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{name or 'the model'!r} is a module of TorchScript, which takes no hooks: give the Python module "
                "that it was made of"
            )


def check_inputs(model: Any, batches: Any, name: str = "batches") -> None:
    """Raise TypeError for a model that is no module, and for one batch in the place of many."""
    check_module(model)
    if isinstance(batches, (Mapping, Tensor)):
        raise TypeError(f"{name} is {describe(batches)}, expected several batches: for one, pass [batch]")


def is_norm(module: nn.Module) -> bool:
    """Whether the type of a module names it a norm."""
    return "norm" in type(module).__name__.lower()


def has_weight(module: nn.Module) -> bool:
    """Whether a module multiplies rows with a weight of its own; an embedding only looks rows up."""
    return not isinstance(module, nn.Embedding) and any(part.ndim > 1 for part in module.parameters(recurse=False))


def items_of(module: nn.Module) -> list[nn.Module]:
    """The items of a list of modules; of any other module none."""
    return list(module) if isinstance(module, LISTS) else []


def address_of(tensor: Tensor) -> int:
    """Where the memory of a tensor starts; 0 for one that has none of its own, as of quantised or sharded weights."""
    try:  # of a DTensor, the part that lies here
        return getattr(tensor, "_local_tensor", tensor).untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def is_hidden(output: Any) -> bool:
    """Whether an output is one float tensor of rows, all of which lie here: a DTensor's may not."""
    whole = type(output) is Tensor or (isinstance(output, Tensor) and not hasattr(output, "_local_tensor"))
    return whole and output.is_floating_point() and output.ndim > 0


def hidden_of(output: Any) -> Any:
    """The hidden states in the output of a module: the output itself, or the first item of a tuple."""
    return output[0] if type(output) is tuple and output and is_hidden(output[0]) else output


def describe(value: Any) -> str:
    """What came, in words: dtype and shape of a tensor, the type of anything else."""
    if isinstance(value, Tensor):
        kind = "DTensor" if hasattr(value, "_local_tensor") else "tensor"
        return f"a {value.dtype} {kind} of shape {tuple(value.shape)}".replace("torch.", "")
    return f"a {type(value).__name__}"
