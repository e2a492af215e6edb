"""Where the kit's own data lies and where it may write."""

import os
from pathlib import Path

from .errors import VitvizError


def data_dir() -> Path:
    """The kit's ``data`` folder: inside an installed wheel, or at the top of the checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "data" if (package / "data").is_dir() else package.parent / "data"


def cache_dir() -> Path:
    """Where renderings, reference activations and downloaded weights are kept: ``$VITVIZ_CACHE`` or the user's cache."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(os.environ.get("VITVIZ_CACHE") or Path(home) / "vitviz_nb").expanduser()
    except RuntimeError:  # no home folder, or ~nobody
        raise VitvizError("There is no home folder for the cache; set the environment variable VITVIZ_CACHE to a folder that "
                          "you may write to.") from None
