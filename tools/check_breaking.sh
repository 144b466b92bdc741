#!/bin/sh
# Fail when the contract breaks clients built against the one on main: `sh tools/check_breaking.sh`.
# Compares the working tree with origin/main, or main where there is no origin. Needs buf on the
# PATH. `make check` calls it.
set -eu
cd "$(dirname "$0")/.."
for ref in refs/remotes/origin/main refs/heads/main; do
    if git cat-file -e "$ref:proto/ds4/v1/types.proto" 2>/dev/null; then
        buf breaking --against ".git#ref=$(git rev-parse "$ref")"
        echo "contract: breaks nothing that ${ref#refs/} has"
        exit 0
    fi
done
echo "contract: there is no main to compare it with"
