"""Where results that can be made again are kept between runs."""

import os
import tempfile
from pathlib import Path

from prune_lab.utils.paths import local_path


def cache_folder() -> Path:
    """The cache folder, made if need be.

    ``PRUNE_LAB_CACHE`` decides; without it, ``prune_lab`` below ``XDG_CACHE_HOME`` or ``~/.cache``. A folder that
    cannot be written (a cluster node without a home) is replaced by one below the temporary directory.
    """
    base = os.environ.get("PRUNE_LAB_CACHE")
    folder = local_path(base or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/prune_lab")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass  # the fallback below serves every reason alike
    folder = Path(tempfile.gettempdir()) / f"prune_lab-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
