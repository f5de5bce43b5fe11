"""`Identity`: which model erasers were fitted on, so that they are refused by another."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# of a configuration, what does not make another model
PASSING = frozenset(
    [
        "transformers_version",
        "dtype",
        "torch_dtype",
        "use_cache",
        "architectures",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "attn_implementation",
        "experts_implementation",
        "quantization_config",
        "is_decoder",
        "problem_type",
        "id2label",
        "label2id",
        "num_labels",
        "chunk_size_feed_forward",
        "tie_word_embeddings",
    ]
)


@dataclass(frozen=True)
class Identity:
    """A model's name, its revision, and what of its configuration defines it; what is empty is unknown.

    >>> Identity("org/small", config={"hidden_size": 64}).differences(Identity("org/large", config={"hidden_size": 96}))
    ["model: 'org/small' there, 'org/large' here", 'hidden_size: 64 there, 96 here']
    """

    model_id: str = ""
    revision: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> Identity:
        """That of a model."""
        config = getattr(model, "config", None)
        values = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
        name, revision = (str(getattr(config, key, None) or "") for key in ("_name_or_path", "_commit_hash"))
        return cls(name, revision, _defining(json.loads(json.dumps(values, default=str, sort_keys=True))))

    def differences(self, other: Identity) -> list[str]:
        """What tells another model (here) from this one (there), as far as both are known."""
        pairs: list[tuple[str, Any, Any]] = []
        if on_hub(self.model_id) and on_hub(other.model_id):
            pairs.append(("model", self.model_id, other.model_id))
        if self.revision and other.revision:
            pairs.append(("revision", self.revision, other.revision))
        if self.config and other.config:
            both = {*self.config} & {*other.config}
            # what kind of model it is comes first, what one of them does not have comes last
            keys = sorted({*self.config, *other.config}, key=lambda key: (key != "model_type", key not in both, key))
            pairs += [(key, self.config.get(key), other.config.get(key)) for key in keys]
        return [f"{what}: {there!r} there, {here!r} here" for what, there, here in pairs if there != here]


def on_hub(name: str) -> bool:
    """Whether a name is one of the hub: folders move, and their names say nothing about what they hold."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def _defining(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _defining(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in PASSING and not key.startswith("_") and not key.endswith("_token_id")
    }
