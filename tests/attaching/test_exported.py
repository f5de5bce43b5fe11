"""Programs exported from erased models: any length, saved and loaded, without our operators, and as ONNX."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from scrubbed_models import eraser_of, scrubber_of
from torch import Tensor, nn

import leace_fast as lf
from leace_fast import Eraser, EraserTable
from leace_fast._ops import reference
from leace_fast._ops.operators import EXTENSION

MOST = 1e-4  # of log-probabilities in float32
FAMILIES = ["llama", "gemma2", "gpt_neox", "gpt2"]
WAYS = ["attached", "fused", "folded"]
needs_kernels = pytest.mark.skipif(not EXTENSION.present, reason="without kernels plain torch alone is exported")
pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec:FutureWarning")


class Logits(nn.Module):
    """A causal model as a function of its ids."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits.log_softmax(-1)


@contextmanager
def erased(name: str, way: str) -> Iterator[nn.Module]:
    """A random model of a family, erased in one of the ways."""
    model = tiny_models.build(name, torch.float32)
    batch = tiny_models.batch(name)
    scrubber = scrubber_of(model, batch)
    if way == "folded":
        scrubber = lf.Scrubber({site: Eraser(e.left, e.right) for site, e in scrubber.items()})
        scrubber.fold_(model, batch)
    with torch.no_grad(), nullcontext() if way == "folded" else scrubber.attached(model, fuse=way == "fused"):
        yield Logits(model).eval()


def inputs() -> list[Tensor]:
    """Ids of three shapes, of which the first is exported with."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 63, shape, generator=generator) for shape in ((2, 9), (3, 5), (1, 17))]


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    free = {0: torch.export.Dim("rows", min=1, max=64), 1: torch.export.Dim("length", min=1, max=32)}
    return torch.export.export(model, (inputs()[0],), dynamic_shapes={"ids": free})


def operators_of(program: torch.export.ExportedProgram) -> set[str]:
    found = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    return {name for name in found if "leace_fast" in name}


@pytest.mark.parametrize("way", WAYS[:2])
@pytest.mark.parametrize("name", FAMILIES)
def test_saved_and_loaded_at_any_length(name: str, way: str, tmp_path: Path) -> None:
    with erased(name, way) as model:
        wanted = [model(ids) for ids in inputs()]
        program = exported(model)
        torch.export.save(program, tmp_path / "program.pt2")
    assert bool(operators_of(program)) == EXTENSION.present
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    plain = program.run_decompositions(lf.decompositions())
    assert not operators_of(plain)
    for ids, each in zip(inputs(), wanted, strict=True):
        assert torch.equal(loaded(ids), each), "the same kernels on the same rows"
        torch.testing.assert_close(plain.module()(ids), each, rtol=0, atol=MOST)


def test_decomposed_it_runs_where_this_package_is_not(tmp_path: Path) -> None:
    with erased("llama", "fused") as model:
        ids = inputs()[1]
        torch.save([ids, model(ids)], tmp_path / "wanted.pt")
        torch.export.save(exported(model).run_decompositions(lf.decompositions()), tmp_path / "program.pt2")
    code = """if True:
        import sys, torch
        sys.modules["leace_fast"] = None
        ids, wanted = torch.load("wanted.pt")
        print(float((torch.export.load("program.pt2").module()(ids) - wanted).abs().max()))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < MOST


@needs_kernels
def test_the_table_has_every_operator_of_an_erasure() -> None:
    """A new operator, or a new argument of one, must not be left out."""
    table: dict[Any, Any] = dict(lf.decompositions())
    names = {name for name in dir(torch.ops.leace_fast) if "project" in name and not name.endswith("_")}
    assert {operator._schema.name for operator in table} == {f"leace_fast::{name}" for name in names}
    x, residual, weight = torch.randn(3, 4, 8), torch.randn(3, 4, 8), torch.randn(8)
    eraser = eraser_of("any", dim=8).to(dtype=torch.float32)
    index = torch.randint(-1, 1, (3, 4))
    stacked: list[Any] = [eraser.left[None], eraser.right[None], eraser.mean[None], index]  # type: ignore[index]
    plain: list[Any] = [eraser.left, eraser.right, eraser.mean, None]
    for factors in (plain, stacked):
        calls: dict[str, list[list[Any]]] = {
            "project": [[x, *factors, None]],
            "add_rms_norm_project": [[x, sums, weight, 1e-5, *factors, 1.0] for sums in (residual, None)],
            "add_layer_norm_project": [[x, sums, weight, weight, 1e-5, *factors] for sums in (residual, None)],
        }
        for operator, function in table.items():
            for arguments in calls[operator._schema.name.partition("::")[2]]:
                torch.testing.assert_close(function(*arguments), operator(*arguments), rtol=1e-5, atol=1e-5)


@needs_kernels
def test_packed_factors_are_left_out() -> None:
    x, left = torch.randn(2, 64).bfloat16(), torch.eye(64)[:, :32]
    (project,) = (
        f for operator, f in dict[Any, Any](lf.decompositions()).items() if operator._schema.name.endswith("::project")
    )
    packed = torch.zeros(1, dtype=torch.uint8)
    assert torch.equal(project(x, left, left.mT, packed=packed), reference.project(x, left, left.mT))


class Own(nn.Module):
    """A module that erases in place, and by a table."""

    def __init__(self) -> None:
        super().__init__()
        self.eraser = eraser_of("one", dim=8)
        self.table = EraserTable([self.eraser, eraser_of("two", dim=8)])

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        y = x * 2
        self.eraser.apply_(y)
        return self.table(y + 1, index)


def test_erasers_in_place_and_tables_are_decomposed_too() -> None:
    model, x, index = Own(), torch.randn(3, 8), torch.tensor([0, -1, 1])
    model(x, index)  # the factors are brought to float32 once, which looks at their numbers: no trace can
    for gradient in (False, True):
        with torch.set_grad_enabled(gradient):
            program = torch.export.export(model, (x, index))
            assert not any("project_." in name for name in operators_of(program))
            plain = program.run_decompositions(lf.decompositions())
            assert not operators_of(plain)
            got, wanted = plain.module()(x, index), model(x, index)
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
            assert plain.module()(x, torch.tensor([0, 5, 1]))[1].isnan().all(), "nor is a wrong number passed over"


def test_without_kernels_there_is_nothing_to_decompose(monkeypatch: pytest.MonkeyPatch) -> None:
    from leace_fast._ops import plain

    monkeypatch.setattr(plain, "EXTENSION", type(EXTENSION)(False, "switched off by a test"))
    assert lf.decompositions() == {}


# ------------------------------------------------------------------ ONNX


@pytest.fixture
def onnx() -> Any:
    pytest.importorskip("onnxscript", reason="torch writes ONNX with onnxscript: pip install 'leace-fast[onnx]'")
    return pytest.importorskip("onnxruntime", reason="pip install 'leace-fast[onnx]'")


def onnx_distances(runtime: Any, model: nn.Module, path: Path) -> list[float]:
    """The largest distance of log-probabilities in onnxruntime from those of the model, for each input."""
    program = exported(model).run_decompositions(lf.decompositions())
    torch.onnx.export(program, (inputs()[0],), path, dynamo=True, verbose=False)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options)
    name = session.get_inputs()[0].name
    return [
        float((torch.from_numpy(session.run(None, {name: ids.numpy()})[0]) - model(ids)).abs().max())
        for ids in inputs()
    ]


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("llama", "fused"),
        *(
            pytest.param(name, way, marks=pytest.mark.nightly)
            for name in FAMILIES
            for way in WAYS
            if (name, way) != ("llama", "fused")
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_of_an_erased_model(name: str, way: str, onnx: Any, tmp_path: Path) -> None:
    with erased(name, way) as model:
        assert max(onnx_distances(onnx, model, tmp_path / "model.onnx")) < MOST


@needs_kernels
def test_onnx_without_the_table_names_the_operator(onnx: Any, tmp_path: Path) -> None:
    """Which is how a user finds the table: docs/serving.md has the message."""
    with erased("llama", "attached") as model, pytest.raises(Exception, match="leace_fast") as error:
        torch.onnx.export(exported(model), (inputs()[0],), tmp_path / "model.onnx", dynamo=True, verbose=False)
    assert "project" in str(error.value)
    assert not (tmp_path / "model.onnx").exists()
