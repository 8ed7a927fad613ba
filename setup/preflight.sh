#!/usr/bin/env bash
# Says in one sentence what a machine lacks before anything is installed on it.
# usage: setup/preflight.sh [PYTHON] [VENV]   exit 0: ready, 1: something is missing
set -u
python=${1:-python3}
folder=${2:-.venv}
# What is there already need not be downloaded again: an update takes little.
if [ -x "$folder/bin/python" ]; then needed_gb=2; else needed_gb=12; fi

missing=()
packages=()

if ! command -v "$python" >/dev/null 2>&1; then
    missing+=("Python 3.11 or newer ('$python' is not there)")
    packages+=(python3 python3-venv)
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    found=$("$python" -c 'import platform; print(platform.python_version())' 2>/dev/null)
    missing+=("Python 3.11 or newer ('$python' is ${found:-broken}; name another with make PYTHON=...)")
    packages+=(python3.11 python3.11-venv)
elif ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    missing+=("Python's venv module")
    packages+=("$version-venv")
fi

compiler=
for name in "${CXX:-c++}" g++ clang++; do
    if command -v "$name" >/dev/null 2>&1; then compiler=$name; break; fi
done
if [ -z "$compiler" ]; then
    missing+=("a C++ compiler")
    packages+=(g++)
fi

if ! command -v make >/dev/null 2>&1; then
    missing+=("make")
    packages+=(make)
fi

existing=$folder
until [ -d "$existing" ]; do existing=$(dirname "$existing"); done
free_kb=$(df -Pk "$existing" | awk 'NR == 2 {print $4}')
if [ "${free_kb:-0}" -lt $((needed_gb * 1024 * 1024)) ]; then
    missing+=("$needed_gb GB of free disk at $(cd "$existing" && pwd) (it has $((${free_kb:-0} / 1024 / 1024)) GB)")
fi

[ ${#missing[@]} -eq 0 ] && exit 0

sentence="Nothing was installed, because this needs ${missing[0]}"
for ((i = 1; i < ${#missing[@]}; i++)); do
    if [ "$i" -eq $((${#missing[@]} - 1)) ]; then sentence+=" and "; else sentence+=", "; fi
    sentence+=${missing[$i]}
done
if [ ${#packages[@]} -gt 0 ]; then
    sentence+="; on Debian or Ubuntu: sudo apt-get install ${packages[*]}"
fi
echo "$sentence." >&2
exit 1
