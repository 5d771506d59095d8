#!/usr/bin/env bash
# Build the CPU environment, with the tests' tools and this project in it:
#
#     envs/install.sh [FOLDER]        (default: .venv beside the Snakefile)
#
# Needs Python >= 3.11 (PYTHON names another one than python3), no root and no FFmpeg. Run it again
# after an interruption or a change of the lists: it goes on where it stands, and does nothing when
# all is there. PYTORCH_INDEX names a mirror of PyTorch's CPU index.
set -Eeuo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${1:-$root/.venv}
index=${PYTORCH_INDEX:-https://download.pytorch.org/whl/cpu}
python=$venv/bin/python
stamp=$venv/.installed

inputs=("$root"/envs/{cpu.txt,dev.txt,install.sh,torchvision_hook.py} "$root/pyproject.toml")
wanted=$({ echo "$root"; cat "${inputs[@]}"; } | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$python" -c "" 2>/dev/null; then
    exit 0
fi

step() {
    current=$*
    printf '%s %s\n' "$(date +%T)" "$current"
}
trap 'echo "envs/install.sh stopped at: $current. The error is above; then run it again." >&2' ERR
pinned() {
    grep "^$1==" "$root/envs/cpu.txt"
}
pip_install() {
    "$python" -m pip install -qq --no-deps --no-compile --no-input --disable-pip-version-check "$@"
}

if ! "$python" -m pip --version >/dev/null 2>&1; then
    step "virtual environment in $venv"
    base=
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
            base=$candidate
            break
        fi
    done
    if [ -z "$base" ]; then
        echo "Python >= 3.11 is needed; PYTHON=/path/to/python names one" >&2
        false
    fi
    if [ -n "$(ls -A "$venv" 2>/dev/null)" ] && [ ! -e "$venv/pyvenv.cfg" ]; then
        echo "$venv is not empty and no virtual environment" >&2
        false
    fi
    "$base" -m venv --clear "$venv"
fi
rm -f "$stamp"
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for info in "$site"/*.dist-info; do
    # pip writes INSTALLER last: without it the package is in parts, and pip would not see that.
    [ -e "$info/INSTALLER" ] || rm -rf "$info"
done

step "pip and torch"
pip_install "$(pinned pip)" # the one that comes with Python 3.11 needs a minute more
torch=$(pinned torch)
vision=$(pinned torchvision)
if ! tried=$(pip_install "$torch" 2>&1); then
    step "$torch and $vision from $index"
    pip_install --index-url "$index" "$torch" "$vision+cpu" || { echo "$tried" >&2; false; }
fi

step "packages: envs/cpu.txt and envs/dev.txt (1 to 3 minutes)"
pip_install -r "$root/envs/cpu.txt" -r "$root/envs/dev.txt"

step "bytecode" # here, because pip would use one core, and PYTHONDONTWRITEBYTECODE forbids it later
"$python" -m compileall -qq -j 0 -x '/tests/' "$site" || true # some files are for newer Pythons

step "this project"
pip_install --no-build-isolation -e "$root"

rm -f "$site"/torchvision_hook.{py,pth}
if ! "$python" -c "import torchvision" 2>/dev/null; then
    step "import hook for a torchvision without its compiled operators"
    cp "$root/envs/torchvision_hook.py" "$site"
    echo "import torchvision_hook; torchvision_hook.install()" >"$site/torchvision_hook.pth"
    "$python" -c "import torchvision"
fi

echo "$wanted" >"$stamp"
step "done: $venv"
