#!/usr/bin/env bash
# Makes ready what the image lacks; run in the image's root: bash payload/remote_payload/bootstrap.sh PYTHON [PIN...]
#
# A PIN (name==version) is one more requirement, of this job alone.
# The last line of stdout is PYTHON=<the interpreter to use from now on>: the one given, when it has every requirement,
# else ROOT/env, which sees the image's packages and adds the missing ones. torch is the image's and never reinstalled.
# llama-cpp-python compiles for minutes; that goes on in the background while the model trains (llama.py waits for it).
# HOMEPORT_MODEL and HOMEPORT_REVISION name a base model on the hub: its download begins here, beside the installing.
# Everything else is said on stderr. Exit 30: this machine cannot be made ready. May be called again.
set -euo pipefail

image=$1
pins=("${@:2}")
root=$PWD
payload=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
requirements=$payload/requirements.txt

unfit() { echo "bootstrap: $*" >&2; exit 30; }

# The requirements that the interpreter $1 does not have in exactly the pinned version, one a line.
missing() {
    "$1" - "$requirements" "${pins[@]}" <<'PY'
import re
import sys
from importlib.metadata import PackageNotFoundError, version

for raw in [*open(sys.argv[1], encoding="utf-8"), *sys.argv[2:]]:
    if requirement := raw.partition("#")[0].strip():
        name, pin = re.fullmatch(r"([\w.-]+)==(\S+)", requirement).groups()
        try:
            if version(name) == pin:
                continue
        except PackageNotFoundError:
            pass
        print(requirement)
PY
}

"$image" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || unfit "$image is not Python 3.11 or newer"
torch=$("$image" -c 'from importlib.metadata import version; print(version("torch"))') || unfit "$image has no torch"

python=$image
lacking=$(missing "$image")
if [[ -n $lacking ]]; then
    python=$root/env/bin/python
    if [[ ! -x $python ]]; then
        "$image" -m venv "$root/env" >&2 || unfit "no virtual environment could be made over $image"
        # Not --system-site-packages: where the image's Python is itself a virtual environment, that would mean its base.
        site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        "$image" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' \
            >"$site/homeport-image.pth"
    fi
    echo "torch==$torch" >"$root/env/constraints.txt"
    pip=("$python" -m pip install --quiet --disable-pip-version-check --constraint "$root/env/constraints.txt")
fi

PYTHONPATH=$(dirname "$payload") "$python" -m remote_payload.converter --root "$root" >&2 &
converter=$!

# Installs those of the requirements that are missing and whose names the pattern $1 matches.
install() {
    local now
    now=$(missing "$python" | grep -v '^llama-cpp-python==' | grep "$1" || true)
    if [[ -n $now ]]; then
        echo "bootstrap: installing" $now >&2
        "${pip[@]}" $now >&2 || unfit "pip could not install" $now
    fi
}

if [[ -n ${HOMEPORT_MODEL:-} ]]; then
    install '^huggingface_hub=='
    echo "bootstrap: fetching $HOMEPORT_MODEL in the background, see model-fetch.log" >&2
    PYTHONPATH=$(dirname "$payload") setsid "$python" -m remote_payload.fetch --root "$root" \
        --repo "$HOMEPORT_MODEL" ${HOMEPORT_REVISION:+--revision "$HOMEPORT_REVISION"} \
        >"$root/model-fetch.log" 2>&1 </dev/null &
fi
if [[ -n $lacking ]]; then
    install .
    later=$(missing "$python" | grep '^llama-cpp-python==' || true)
    if [[ -n $later ]]; then
        # The build inherits the lock and holds it until it ends, however it ends; a second one is not begun beside it.
        exec 9>"$root/llama-build.lock"
        if flock --nonblock 9; then
            echo "bootstrap: compiling $later in the background, see llama-build.log" >&2
            # For any x86-64 with AVX2, not for this very processor: a virtual machine may list AMX, and end who uses it.
            CMAKE_ARGS=${CMAKE_ARGS:--DGGML_NATIVE=OFF} setsid "${pip[@]}" "$later" >"$root/llama-build.log" 2>&1 </dev/null &
        fi
        exec 9>&-
    fi
fi

wait "$converter" || unfit "llama.cpp's converter could not be fetched"

echo "PYTHON=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")"
