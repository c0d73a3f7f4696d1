#!/usr/bin/env bash
# Builds the documentation into site/, with warnings as errors: a link that leads nowhere is one. Arguments go to
# sphinx-build (-E reads all pages anew). To read it, open site/index.html; no server and no network is needed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"
python -c 'import furo, myst_parser, sphinx' 2>/dev/null \
    || fail "The documentation is built with Python 3.11 or later and the extra docs; this is $(python --version)."
exec python -m sphinx --conf-dir docs --builder html --fail-on-warning --keep-going --quiet \
    --doctree-dir build/doctrees "$@" . site
