"""What is installed, from what it is built, and what happens where it cannot be built."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from builds import build, object_folder

import leace_fast

ROOT = Path(__file__).parent.parent
LINK = "leace_fast/triton_kernels"
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command without LEACE_FAST_EXT, unless `env` sets it."""
    return subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd, env=clean() | (env or {}))


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "LEACE_FAST_EXT"}


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return object_folder(tmp_path_factory, "plain")


def test_version_is_written_once() -> None:
    assert leace_fast.__version__ == importlib.metadata.version("leace-fast")
    assert 'dynamic = ["version"]' in PYPROJECT
    assert f"## {leace_fast.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_package_is_listed() -> None:
    """They are listed by name, for a search does not follow the link to the kernels."""
    listed = re.search(r"^packages = \[(.*?)\]", PYPROJECT, re.MULTILINE | re.DOTALL)
    assert listed
    found = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in (ROOT / "leace_fast").rglob("*.py")}
    assert set(re.findall(r'"(.*?)"', listed[1])) == found | {"leace_fast.triton_kernels"}


def test_kernels_are_no_top_level_module() -> None:
    """That name belongs to another package, which serving stacks import."""
    assert not (ROOT / "triton_kernels" / "__init__.py").exists()
    kernels, linked = (sorted((ROOT / folder).glob("*.py")) for folder in ("triton_kernels", LINK))
    # An sdist holds two copies.
    assert kernels and [path.read_bytes() for path in kernels] == [path.read_bytes() for path in linked]
    imports = [line for path in (ROOT / "triton_kernels").glob("*.py") for line in path.read_text().splitlines()]
    imports = [line.split()[1] for line in imports if re.match(r"(import|from) ", line)]
    own, known = {name for name in imports if name.startswith(".")}, {"__future__", "dataclasses", "typing"}
    assert {name.split(".")[0] for name in set(imports) - own} <= known | {"torch", "triton"}


def test_building_never_asks_for_torch() -> None:
    requires = re.search(r"^requires = \[(.*)\]$", PYPROJECT, re.MULTILINE)
    assert requires and "torch" not in requires[1]


def test_extras_and_console_script() -> None:
    metadata = importlib.metadata.metadata("leace-fast")
    assert {"hf", "audit", "test", "bench", "dev"} <= set(metadata.get_all("Provides-Extra") or [])
    required = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    names = {re.split(r"[ <>=;(\[]", line)[0] for line in required}
    assert names == {"torch", "numpy", "safetensors", "huggingface_hub", "typer", "rich"}
    scripts = importlib.metadata.distribution("leace-fast").entry_points
    assert [entry.value for entry in scripts if entry.name == "leace-fast"] == ["leace_fast.cli:app"]


@pytest.fixture
def no_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which torch cannot be imported."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('no torch here')\n")
    return {"PYTHONPATH": str(tmp_path)}


def test_without_torch_the_build_goes_on(no_torch: dict[str, str]) -> None:
    result = run(sys.executable, "setup.py", "--version", env=no_torch)
    assert result.returncode == 0
    assert result.stdout.strip().endswith(leace_fast.__version__)
    assert "without its torch operators" in result.stderr and "no torch here" in result.stderr


def test_without_torch_a_required_build_is_loud(no_torch: dict[str, str]) -> None:
    result = run(sys.executable, "setup.py", "--version", env=no_torch | {"LEACE_FAST_EXT": "1"})
    assert result.returncode != 0
    assert "no torch here" in result.stderr and "--no-build-isolation" in result.stderr


def test_left_out_on_request_and_silently(no_torch: dict[str, str]) -> None:
    result = run(sys.executable, "setup.py", "--version", env=no_torch | {"LEACE_FAST_EXT": "0"})
    assert result.returncode == 0
    assert "kernels" not in result.stderr


def test_other_values_of_the_switch_are_refused() -> None:
    result = run(sys.executable, "setup.py", "--version", env={"LEACE_FAST_EXT": "yes"})
    assert result.returncode != 0
    assert "expected 1" in result.stderr and "'yes'" in result.stderr


@pytest.mark.parametrize("required", [False, True])
def test_a_compiler_that_fails(tmp_path: Path, required: bool) -> None:
    command = (sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path)
    env = {"CXX": "false", "CC": "false"} | ({"LEACE_FAST_EXT": "1"} if required else {})
    result = run(*command, env=env)
    assert (result.returncode != 0) == required, result.stderr
    assert "kernels" in result.stderr
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.nightly
def test_without_torch_the_module_for_numpy_is_built(tmp_path: Path, no_torch: dict[str, str], objects: Path) -> None:
    command = (sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path)
    result = build(objects, *command, env=clean() | no_torch)
    assert result.returncode == 0, result.stderr
    (module,) = tmp_path.rglob("*.so")
    assert module.name.startswith("_C.")
    code = "import sys, _C; print(_C.build_info()['instruction_set'], 'torch' in sys.modules)"
    assert run(sys.executable, "-c", code, cwd=module.parent).stdout.split()[1] == "False"


NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on the PATH to build the CUDA operators with")


@pytest.fixture
def torch_with_cuda(tmp_path: Path) -> dict[str, str]:
    """An environment whose torch says that it has CUDA, with the one function that is asked of that part of it."""
    (tmp_path / "sitecustomize.py").write_text("import torch\n\ntorch.version.cuda = '13.0'\n")
    stub = 'extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n'
    library = (*shlex.split(os.environ.get("CXX", "c++")), "-shared", "-fPIC", "-x", "c++", "-")
    subprocess.run([*library, "-o", str(tmp_path / "libtorch_cuda.so")], input=stub, text=True, check=True)
    paths = dict.fromkeys(("PYTHONPATH", "LIBRARY_PATH", "LD_LIBRARY_PATH"), str(tmp_path))
    return paths | {"LEACE_FAST_EXT": "1", "TORCH_CUDA_ARCH_LIST": "7.5 8.0"}


@pytest.mark.nightly
@needs_nvcc
def test_operators_for_cuda_are_built_and_found(tmp_path: Path, torch_with_cuda: dict[str, str], objects: Path) -> None:
    command = (sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path)
    result = build(objects, *command, env=clean() | torch_with_cuda)
    assert result.returncode == 0, result.stdout + result.stderr
    code = f"""if True:
        import torch
        torch.ops.load_library({str(tmp_path / "leace_fast" / "_C_torch.so")!r})
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        print([device for device in ("CPU", "CUDA") if has_kernel("leace_fast::project", device)])"""
    loaded = run(sys.executable, "-c", code, env=torch_with_cuda)
    assert loaded.stdout == "['CPU', 'CUDA']\n", loaded.stderr


def test_torch_with_cuda_and_no_nvcc_is_said(tmp_path: Path, torch_with_cuda: dict[str, str]) -> None:
    without = torch_with_cuda | {"CUDA_HOME": str(tmp_path)}
    result = run(sys.executable, "setup.py", "--version", env=without)
    assert result.returncode == 0, result.stderr
    assert "without its CUDA operators" in result.stderr and "CUDA_HOME" in result.stderr


@needs_nvcc
@pytest.mark.parametrize("gpus", ["7.5", "8.0;ninety", "sm_90"])
def test_gpus_that_the_kernels_cannot_be_compiled_for(torch_with_cuda: dict[str, str], gpus: str) -> None:
    result = run(sys.executable, "setup.py", "--version", env=torch_with_cuda | {"TORCH_CUDA_ARCH_LIST": gpus})
    assert result.returncode != 0
    assert repr(gpus) in result.stderr and "8.0;9.0a" in result.stderr


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory, objects: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
    result = build(objects, *command, env=clean() | {"LEACE_FAST_EXT": "1"})
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def installed_package_files() -> set[str]:
    """The files of the package that are under version control, by their path in the repository."""
    listed = run("git", "ls-files", "leace_fast", "triton_kernels").stdout.split()
    # The kernels stand at the top of the repository; they are installed where a link in the package says.
    inside = {name.replace("triton_kernels/", f"{LINK}/", 1) if name.startswith("triton_") else name for name in listed}
    return inside - {LINK} or {str(path.relative_to(ROOT)) for path in (ROOT / "leace_fast").rglob("*.py")}


@pytest.mark.nightly
def test_sdist_holds_all_that_a_build_and_its_tests_need(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    sources |= {str(path.relative_to(ROOT)) for path in (ROOT / "triton_kernels").glob("*.py")}
    tests = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    files = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "setup.py", ".ci/environment.sh"}
    files |= {"CITATION.cff", "SECURITY.md", "CODE_OF_CONDUCT.md", ".ci/release.py"}
    assert not (sources | tests | files | installed_package_files()) - names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.mark.nightly
def test_wheel_holds_the_package_and_nothing_else(distributions: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(distributions[1]).namelist())
    assert not installed_package_files() - names, "a data file may be missing from package-data"
    assert "leace_fast/py.typed" in names
    assert [name for name in names if name.startswith("leace_fast/_C") and name.endswith(".so")]
    assert "leace_fast/_C_torch.so" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"leace_fast"}
    assert [name for name in names if name.endswith("dist-info/licenses/LICENSE")]


@pytest.mark.nightly
def test_wheel_without_kernels_is_pure(tmp_path: Path) -> None:
    result = run(*(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path), env={"LEACE_FAST_EXT": "0"})
    assert result.returncode == 0, result.stdout + result.stderr
    wheel = next(tmp_path.glob("*.whl"))
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


@pytest.mark.nightly
def test_installed_wheel_works_away_from_the_checkout(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    assert run(sys.executable, "-m", "venv", tmp_path / "env").returncode == 0
    python = next((tmp_path / "env").glob("[bS]*/python*"))
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    # Torch and the other dependencies come from this environment; leace-fast itself from the wheel.
    outer = run(sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout
    (site / "outer.pth").write_text(outer)
    installed = run(python, "-m", "pip", "install", "--no-deps", "--no-index", "--force-reinstall", distributions[1])
    assert installed.returncode == 0, installed.stderr
    script = python.parent / "leace-fast"
    findings = json.loads(run(script, "doctor", "--json", cwd=tmp_path).stdout)
    assert Path(findings["leace-fast"]["note"]) == site / "leace_fast"
    assert findings["extension"]["present"]
    kernels = run(python, "-c", "import leace_fast.triton_kernels.block as it; print(it.__file__)", cwd=tmp_path)
    assert kernels.stdout.strip() == str(site / LINK / "block.py"), kernels.stderr
    assert not (site / "triton_kernels").exists()
