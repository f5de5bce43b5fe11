"""Crafted files: with right checksums, and a header, a field or a tensor that is not what was written."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import torch
from torch import Tensor

from leace_fast._files import BLANK_DIGEST, DIGEST_MARK, tensor_bytes

DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
VALUES: list[Any] = [
    *(None, True, False, "", "x", "\ud800", -1, 0, 1, 2, 7, 2**24, 2**31, 2**40, 2**62, 2**63, 10**30, 0.5, -1.5),
    *(1e308, float("nan"), float("inf"), -float("inf"), [], [1], ["x"], {}, {"x": 1}, [[]], DEEP, "f" * 64, "0" * 64),
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int32, torch.int64, torch.bool]
NUMBERS = [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1.0, 1e308, -1e308, 1e-320, 3.5]
AXES = [-1, 0, 1, 2, 3, 2**20, 2**31, 2**40, 2**62, 2**63, True, "3", None, 1.5, []]


def changed_value(value: Any, chance: random.Random) -> Any:
    """A value with something inside it, or all of it, exchanged, left out or added."""
    if not isinstance(value, (dict, list)) or not value or chance.random() >= 0.8:
        return chance.choice(VALUES)
    twin: Any = value.copy()
    place: Any = chance.choice(sorted(twin)) if isinstance(twin, dict) else chance.randrange(len(twin))
    action = chance.random()
    if action < 0.2:
        del twin[place]
    elif isinstance(twin, dict) and action < 0.3:
        twin[place + "x"] = twin.pop(place)
    elif isinstance(twin, list) and action < 0.4:
        twin.insert(place, twin[place])
    else:
        twin[place] = changed_value(twin[place], chance)
    return twin


def changed_tensors(tensors: dict[str, Tensor], chance: random.Random) -> dict[str, Tensor]:
    """Tensors of which one is missing, renamed, exchanged, or of another dtype, shape or content."""
    twin, name = dict(tensors), chance.choice(sorted(tensors))
    part = twin[name].clone()
    action = chance.randrange(9)
    if action == 0:
        del twin[name]
    elif action == 1:
        twin[chance.choice(["x", "group_x", name + "x", "left", "second"])] = twin.pop(name)
    elif action == 2:
        other = chance.choice(sorted(twin))
        twin[name], twin[other] = twin[other], twin[name]
    elif action == 3:
        twin[name] = part.to(chance.choice(DTYPES))
    elif action == 4:
        twin[name] = chance.choice(
            [part.flatten(), part[None], part[..., None], part.mT if part.ndim > 1 else part[:0]]
        )
    elif action == 5:
        axis = chance.randrange(part.ndim) if part.ndim else None
        twin[name] = part if axis is None else part.narrow(axis, 0, chance.randrange(part.shape[axis] + 1))
    elif action == 6:
        twin[name] = torch.cat([part, part]) if part.ndim else part[None]
    elif part.numel():
        flat = part.view(-1)
        number = torch.tensor(chance.choice(NUMBERS), dtype=torch.float64)
        number = number.nan_to_num(0.0).clamp(-(2.0**62), 2.0**62) if not part.is_floating_point() else number
        flat[chance.randrange(len(flat)) if action == 7 else slice(None)] = number.to(part.dtype)
        twin[name] = part
    return twin


def changed_layout(data: bytes, chance: random.Random) -> bytes:
    """A file whose safetensors header says something else of its bytes, or has another length."""
    end = 8 + int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8:end]), data[end:]
    name = chance.choice(sorted(set(header) - {"__metadata__"}) or ["__metadata__"])
    action, entry = chance.randrange(7), header[name]
    if action == 0:
        header[name] = changed_value(entry, chance)
    elif action == 1 and "shape" in entry:
        entry["shape"] = [chance.choice([size, chance.choice(AXES)]) for size in entry["shape"]]
    elif action == 2 and "shape" in entry:
        entry["data_offsets"] = [each + chance.choice([-8, 0, 8, 2**40]) for each in entry["data_offsets"]]
    elif action == 3 and "shape" in entry:
        entry["dtype"] = chance.choice(["F32", "F64", "I64", "BOOL", "F8_E4M3", "F8_E8M0", "C64", "X"])
    elif action == 4:
        body = chance.choice([body[:-8], body + bytes(8), b"", body[:1]])
    elif action == 5:
        header[name + "2"] = dict(entry)
    else:
        header["__metadata__"] = changed_value(header["__metadata__"], chance)
    text = json.dumps(header, separators=(",", ":")).encode()
    length = len(text) + (chance.choice([0, 0, 0, 0, -1, 1, 8, 2**31, 2**62]))
    return length.to_bytes(8, "little") + text + body


def with_checksum(data: bytes) -> bytes:
    """A file's bytes with the digest that fits them, where it has a place for one."""
    begin = data.find(DIGEST_MARK)
    if begin < 0:
        return data
    begin += len(DIGEST_MARK)
    blank = data[:begin] + BLANK_DIGEST.encode() + data[begin + 64 :]
    return blank[:begin] + hashlib.sha256(blank).hexdigest().encode() + blank[begin + 64 :]


def raw_bytes(kind: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> bytes:
    """What `tensor_bytes` writes, also of a header that it refuses to write."""
    data = tensor_bytes(kind, tensors, {})
    end = 8 + int.from_bytes(data[:8], "little")
    outer = json.loads(data[8:end])
    outer["__metadata__"]["leace_fast"] = json.dumps(header)
    text = json.dumps(outer, sort_keys=True, separators=(",", ":")).encode()
    return with_checksum(len(text).to_bytes(8, "little") + text + data[end:])


def crafted(tensors: dict[str, Tensor], header: dict[str, Any], chance: random.Random) -> bytes:
    """A file with a right checksum, in which one to three things are not as they were written."""
    header = dict(header)
    ways = [chance.randrange(3) for _ in range(chance.choice([1, 1, 2, 3]))]
    for way in ways:
        if way == 0:
            header = changed_value(header, chance)
            header = header if isinstance(header, dict) else {}
        elif way == 1 and tensors:
            tensors = changed_tensors(tensors, chance)
    data = raw_bytes("x", tensors, header)
    return with_checksum(changed_layout(data, chance)) if 2 in ways else data
