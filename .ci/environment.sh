#!/bin/sh
# Run a command in an environment that has leace-fast and some of its extras, making it first where need be:
#
#     .ci/environment.sh EXTRAS COMMAND...
#
# An active virtual environment or conda environment is used if it has a torch that fits; else .venv is made here.
# PYTHON names the interpreter for .venv. TORCH=cuda asks for a torch with CUDA (gigabytes); without it, none is
# ever downloaded.
set -eu

TORCH_PIN=2.13.0 # the torch for the CPU that a new environment gets
PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-cpu}
root=$(cd "$(dirname "$0")/.." && pwd)
extras=$1
shift

say() { echo "leace-fast: $*" >&2; }
stop() {
    say "$*"
    exit 1
}

case $TORCH in cpu | cuda) ;; *) stop "TORCH is '$TORCH', expected cpu or cuda" ;; esac

# Does the environment $1 have a Python and a torch that fit? Read from the metadata: importing torch takes seconds.
has_torch() {
    [ -x "$1/bin/python" ] && "$1/bin/python" - "$TORCH" 2>/dev/null <<'END'
import sys
from importlib.metadata import version
torch = version("torch")
fits = tuple(int(part) for part in torch.split("+")[0].split(".")[:2]) >= (2, 10)
sys.exit(not (fits and sys.version_info >= (3, 10) and not (sys.argv[1] == "cuda" and torch.endswith("+cpu"))))
END
}

environment=
for active in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
    if [ -z "$environment" ] && [ -n "$active" ] && has_torch "$active"; then environment=$active; fi
done
: "${environment:=$root/.venv}"
python=$environment/bin/python

if [ ! -x "$python" ]; then
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        stop "$PYTHON is missing or older than 3.10: name another, for example PYTHON=python3.12 make test"
    say "making $environment"
    "$PYTHON" -m venv "$environment" ||
        stop "cannot make an environment with $PYTHON (on Debian and Ubuntu: apt install python3-venv)"
fi

if ! has_torch "$environment"; then
    say "installing torch ($TORCH)"
    if [ "$TORCH" = cuda ] || [ "$(uname -s)" = Darwin ]; then
        "$python" -m pip install -qq --upgrade "torch>=2.10" # the wheels for macOS have no CUDA
    else
        # What pip finds as it is configured (a mirror, a folder of wheels), else the index of CPU builds.
        "$python" -m pip install -qq "torch==$TORCH_PIN+cpu" 2>/dev/null ||
            "$python" -m pip install -qq "torch==$TORCH_PIN" --index-url https://download.pytorch.org/whl/cpu
    fi
    has_torch "$environment" || stop "the torch that was installed does not fit TORCH=$TORCH and torch>=2.10"
fi

# Installed already, for this checkout, and nothing of the build has changed since?
stamp=$environment/.leace-fast-$extras
changed() { [ -n "$(find "$root/pyproject.toml" "$root/setup.py" "$root/csrc" -newer "$stamp")" ]; }
if [ ! -e "$stamp" ] || [ "$(cat "$stamp")" != "$root" ] || changed; then
    say "installing leace-fast[$extras] into $environment"
    # The torch that is there stays, and the kernels are built against it.
    "$python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >"$stamp.constraints"
    "$python" -m pip install -qq "setuptools>=77" "pybind11>=2.13" ninja
    "$python" -m pip install -qq --no-build-isolation --constraint "$stamp.constraints" --editable "$root[$extras]"
    echo "$root" >"$stamp"
    [ -e "$root/leace_fast/_C_torch.so" ] ||
        say "the compiled kernels could not be built (no compiler?); plain torch is used, with the same results"
fi

PATH=$environment/bin:$PATH
export PATH
exec "$@"
