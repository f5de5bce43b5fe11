"""Everything that knows `nn.Module`: sites, hooks, the labels of a batch, statistics by site."""

from __future__ import annotations

from ._batch_labels import MASK, BatchLabels, decoder_sites
from ._groups import PLACES
from ._hooks import acts_of, add_act, forget_compiled, tap, tapped
from ._identity import Identity, on_hub
from ._inside import Inside
from ._modules import (
    GROUPS,
    LABELS,
    address_of,
    as_before,
    check_hooks,
    check_inputs,
    check_module,
    describe,
    device_of,
    eagerly,
    evaluating,
    has_weight,
    hidden_of,
    inputs_of,
    is_hidden,
    is_norm,
    item_size,
    items_of,
    multiplies,
    run_example,
    submodules,
    uncompiled,
    with_groups,
    with_hooks,
    without_labels,
)
from ._recording import record
from ._retyping import put_on, take_off, wears
from ._sites import Site, find_sites, resolve_sites
from ._trace import by_row
from ._wrappers import bare_name, inner_name, unwrapped

__all__ = [
    "BatchLabels",
    "GROUPS",
    "Identity",
    "Inside",
    "LABELS",
    "MASK",
    "PLACES",
    "Site",
    "acts_of",
    "add_act",
    "address_of",
    "bare_name",
    "by_row",
    "check_hooks",
    "check_inputs",
    "check_module",
    "decoder_sites",
    "describe",
    "device_of",
    "eagerly",
    "as_before",
    "evaluating",
    "find_sites",
    "forget_compiled",
    "has_weight",
    "hidden_of",
    "inner_name",
    "inputs_of",
    "item_size",
    "is_hidden",
    "is_norm",
    "items_of",
    "multiplies",
    "on_hub",
    "put_on",
    "record",
    "resolve_sites",
    "run_example",
    "submodules",
    "take_off",
    "tap",
    "tapped",
    "uncompiled",
    "unwrapped",
    "wears",
    "with_groups",
    "with_hooks",
    "without_labels",
]
