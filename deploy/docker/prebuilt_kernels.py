"""Lets numba read compiled kernels where it may not write: in an image whose root file system is read-only.

numba keeps machine code only in a folder that it can write to, and compiles at each start where there is none: half
a minute and 150 MB. `NUMBA_CACHE_LOCATOR_CLASSES=prebuilt_kernels.Prebuilt` asks nothing of the folder NUMBA_CACHE_DIR
but that it can be read. What is not in it is compiled for the process that needs it.
"""

from __future__ import annotations

from numba.core.caching import UserProvidedCacheLocator

__all__ = ["Prebuilt"]


class Prebuilt(UserProvidedCacheLocator):  # type: ignore[misc]
    """The folder NUMBA_CACHE_DIR, whether it can be written to or not."""

    def ensure_cache_path(self) -> None:
        """Make it where that is possible; numba's own look, whether a file can be made in it, is left out."""
        try:
            super().ensure_cache_path()
        except OSError:
            return
