"""Where results that can be made again are kept between runs."""

import os
import stat
import tempfile
from pathlib import Path

from prune_lab.errors import BadInput
from prune_lab.utils.paths import local_path


def cache_folder() -> Path:
    """The cache folder, made if need be.

    ``PRUNE_LAB_CACHE`` decides; without it, ``prune_lab`` below ``XDG_CACHE_HOME`` or ``~/.cache``. A folder that
    cannot be written (a cluster node without a home) is replaced by one below the temporary directory.

    Raises:
        BadInput: that one is not the user's alone.
    """
    base = os.environ.get("PRUNE_LAB_CACHE")
    folder = local_path(base or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/prune_lab")
    try:
        if str(folder).startswith("~"):
            raise FileNotFoundError(f"there is no home folder {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass  # the fallback below serves every reason alike
    return _private_folder(Path(tempfile.gettempdir()) / f"prune_lab-{os.getuid()}")


def _private_folder(folder: Path) -> Path:
    """A folder where everybody may make some, if nobody else made it or can write to it.

    Its name is easy to guess: another user could lay out results there, or links to files of this one's.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        mode = stat.S_IMODE(found.st_mode)
        wrong = (
            "it is no folder" if not stat.S_ISDIR(found.st_mode)
            else f"it belongs to user {found.st_uid}" if found.st_uid != os.getuid()
            else f"its permissions are {mode:04o}, not 0700" if mode != 0o700
            else None
        )  # fmt: skip
    except OSError as error:
        wrong = error.strerror
    if wrong:
        raise BadInput(
            f"the cache folder cannot be written, and {folder} is not used in its place: {wrong}; set PRUNE_LAB_CACHE "
            "to a folder that you can write to, or remove that one"
        )
    return folder
