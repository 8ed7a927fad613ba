#!/usr/bin/env bash
# Creates the environment and installs the package with the pinned versions; pip's words go to a log.
# usage: setup/install.sh PYTHON VENV LOG
set -euo pipefail
python=$1
venv=$2
log=$3
unfinished=$venv/.unfinished

mkdir -p "$(dirname "$log")"
# An installation that was interrupted may hold half a package: start such a one afresh.
if [ -e "$unfinished" ] && [ -e "$venv/pyvenv.cfg" ]; then
    echo "The last installation into $venv was interrupted; starting it afresh."
    rm -rf "$venv"
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" >"$log" 2>&1 || {
    echo "The environment $venv could not be created: $(tail -n 1 "$log")" >&2
    exit 1
}
touch "$unfinished"

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off
began=$SECONDS
"$venv/bin/python" -m pip install -c constraints.txt -e '.[dev]' >"$log" 2>&1 &
pip=$!
trap 'kill "$pip" 2>/dev/null || true' EXIT

line() {
    local what
    what=$(grep -Eo '^(Collecting|Downloading|Installing collected packages|Building [a-z ]+)[^(]{0,40}' "$log" | tail -n 1 || true)
    printf '%s' "Installing: $((SECONDS - began)) s, ${what:-starting} (usually 2 to 6 minutes; all of it in $log)"
}
while kill -0 "$pip" 2>/dev/null; do
    if [ -t 1 ]; then
        printf '\r\033[K%.*s' "${COLUMNS:-100}" "$(line)"
        sleep 1
    else
        line; echo
        for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do kill -0 "$pip" 2>/dev/null && sleep 1; done
    fi
done
[ -t 1 ] && printf '\r\033[K'

if wait "$pip"; then
    trap - EXIT
    rm -f "$unfinished"
    echo "Installed into $venv in $((SECONDS - began)) s."
else
    # pip gave up by itself and so left nothing half done.
    trap - EXIT
    rm -f "$unfinished"
    echo "The installation failed; pip's last words (all of them in $log):" >&2
    { grep -E '^(ERROR|error)' "$log" || tail -n 15 "$log"; } | tail -n 15 >&2
    exit 1
fi
