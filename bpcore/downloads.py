"""Files of data sets: found on this machine, or downloaded.

A file is searched in the folder that the environment variable BPCORE_DATA names, then in the user's cache. If neither has it,
it is downloaded to the cache. Its md5 is checked in each case.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from bpcore import files

TIMEOUT = 30  # seconds without new data


def find(folder: str, name: str, md5: Mapping[str, str], url: str) -> Path:
    """The path of a file, or of its gzipped form, with the right md5. If it is not found, it is downloaded to the cache.

    name: the file's name without ".gz". md5: by the name of each form that exists. url: of the folder. Raises ValueError if the
    file has another md5, and OSError if it is neither found nor downloadable.
    """
    import hashlib  # slow to import

    forms = [form for form in (name, f"{name}.gz") if form in md5]
    roots = [cache()]
    if named := os.environ.get("BPCORE_DATA"):
        roots.insert(0, Path(named))
        if not roots[0].is_dir():
            raise FileNotFoundError(
                f"BPCORE_DATA names {named}, which is not a folder; correct the path, or unset it to use {roots[1]}"
            )
    for path in (root / folder / form for root in roots for form in forms):
        if path.is_file():
            with path.open("rb") as file:
                got = hashlib.file_digest(file, "md5").hexdigest()
            if got != md5[path.name]:
                wrong = f"its md5 is {got}, expected {md5[path.name]}"
                raise ValueError(f"{path} is damaged, or another file: {wrong}; delete it and fetch it again")
            return path
    path = roots[-1] / folder / forms[-1]
    download(url + path.name, path, md5[path.name])
    return path


def cache() -> Path:
    """bpcore's folder in this user's cache, at the platform's usual place."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path.home() / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or root) / "bpcore"


def download(url: str, path: Path, md5: str) -> None:
    """Download `url` to `path`, whole or not at all; a ValueError if the md5 does not match, an OSError if the download fails."""
    import hashlib
    from http.client import HTTPException
    from urllib.request import urlopen

    elsewhere = f"fetch it on another machine, and put it there or in {path.parent.name}/ of the folder that BPCORE_DATA names"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urlopen(url, timeout=TIMEOUT) as answer:
            content = b"".join(iter(lambda: answer.read(1 << 20), b""))
        got = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if got != md5:
            wrong = f"its md5 is {got}, expected {md5}"
            raise ValueError(f"{url} gave another file than expected: {wrong}; try again, or {elsewhere}")
        files.write(path, content)
    except (OSError, HTTPException) as error:
        raise OSError(f"{path} does not exist, and could not be downloaded from {url} ({error}); {elsewhere}") from error
