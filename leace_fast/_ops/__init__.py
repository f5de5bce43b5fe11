"""Every operation in one place: in plain torch, checked, sent to its kernel, with its gradients."""

from __future__ import annotations

from .arguments import check_project
from .arrays import check_plain, takes_arrays, tensor_from
from .devices import check_dense, device_here
from .direct import Bound, BoundNorm
from .extension import Extension, load_extension
from .operators import add_layer_norm_project, add_rms_norm_project, check_index, pack, project, project_
from .plain import decompositions
from .reference import ROW_DTYPES, add_lower_product, cholesky, compute_dtype, layer_norm, rms_norm, slices

__all__ = [
    "Bound",
    "BoundNorm",
    "Extension",
    "ROW_DTYPES",
    "add_layer_norm_project",
    "add_lower_product",
    "add_rms_norm_project",
    "check_dense",
    "check_index",
    "check_plain",
    "check_project",
    "cholesky",
    "compute_dtype",
    "decompositions",
    "device_here",
    "layer_norm",
    "load_extension",
    "pack",
    "project",
    "project_",
    "rms_norm",
    "slices",
    "takes_arrays",
    "tensor_from",
]
