"""Make a release: the version in every file that states it, one commit and one annotated tag, or nothing at all.

`make release VERSION=0.2.0` commits "Release 0.2.0" and tags it v0.2.0; nothing is pushed. docs/releasing.md says what
comes before and after.
"""

from __future__ import annotations

import argparse
import difflib
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]
CODE, CITATION, CHANGELOG = "leace_fast/_version.py", "CITATION.cff", "CHANGELOG.md"
BRANCH = "main"
IN_CODE = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
UNRELEASED = re.compile(r"^## (?:\S+ \(unreleased\)|unreleased)$", re.IGNORECASE)


class Refused(Exception):
    """The release cannot be made; nothing was changed."""


def git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise Refused(f"git {' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def read(name: str) -> str:
    return (ROOT / name).read_bytes().decode()  # line endings as they are


def current_version() -> str:
    found = IN_CODE.findall(read(CODE))
    if len(found) != 1:
        raise Refused(f'{CODE} states {len(found)} versions, expected one line __version__ = "..."')
    return found[0]


def check_version(version: str) -> None:
    """Refuse what is no public version of PEP 440 in its normal form, or older than the code, or released."""
    try:
        parsed = Version(version)
    except InvalidVersion:
        raise Refused(f"{version!r} is no version of PEP 440, expected one like 0.2.0 or 0.2.0rc1") from None
    if str(parsed) != version or parsed.local:
        raise Refused(f"{version!r} is not written as package indexes write it, expected {parsed.public!r}")
    if git("tag", "--list", f"v{version}"):
        raise Refused(f"the tag v{version} exists: a version is released once, name a newer one")
    # That of the code itself is free as long as it has no tag: so the first release gets its number.
    if parsed < Version(current := current_version()):
        raise Refused(f"{version} is older than {current}, which {CODE} states")


def check_tree() -> None:
    """Refuse another branch than main, and files that are not committed."""
    if (branch := git("branch", "--show-current")) != BRANCH:
        raise Refused(f"the branch is {branch or 'none (detached)'}, expected {BRANCH}: git switch {BRANCH}")
    if changed := git("status", "--porcelain"):
        raise Refused(f"the tree is not clean, commit or remove these first:\n{changed}")


def sections(changelog: str) -> dict[str, str]:
    """The text below each heading of the second level, in the order of the file."""
    parts = re.split(r"^(## .*)$", changelog, flags=re.MULTILINE)
    return {heading.rstrip(): text.strip() for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


def unreleased(changelog: str) -> str:
    """The heading of what was not released yet, which must be the first and say something."""
    found = sections(changelog)
    first = next(iter(found), "")
    if not UNRELEASED.match(first):
        raise Refused(f'{CHANGELOG} begins with {first!r}, expected "## Unreleased": write what changed below it')
    if not found[first]:
        raise Refused(f"{CHANGELOG} says nothing below {first!r}: write what changed")
    return first


def notes(version: str) -> str:
    """What the changelog says of a version that was released, which the code must be of."""
    if (current := current_version()) != version:
        raise Refused(f"{CODE} states {current}, expected {version}")
    for heading, text in sections(read(CHANGELOG)).items():
        if re.match(rf"## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", heading):
            return text
    raise Refused(f'{CHANGELOG} has no heading "## {version} (date)"')


def changes(version: str, date: str) -> dict[str, str]:
    """The new text of each file that states the version."""
    citation, stated = re.subn(
        r"^version: .*$", f"version: {version}\ndate-released: {date}", _undated(read(CITATION)), flags=re.MULTILINE
    )
    if stated != 1:
        raise Refused(f"{CITATION} states {stated} versions, expected one line version: ...")
    changelog = read(CHANGELOG)
    heading = rf"^{re.escape(unreleased(changelog))}"
    return {
        CODE: read(CODE).replace(f'"{current_version()}"', f'"{version}"'),
        CITATION: citation,
        CHANGELOG: re.sub(heading, f"## {version} ({date})", changelog, count=1, flags=re.MULTILINE),
    }


def _undated(citation: str) -> str:
    return re.sub(r"^date-released: .*\n", "", citation, flags=re.MULTILINE)


def show(new: dict[str, str], version: str) -> None:
    for name, text in new.items():
        old, changed = read(name).splitlines(keepends=True), text.splitlines(keepends=True)
        sys.stdout.writelines(difflib.unified_diff(old, changed, f"a/{name}", f"b/{name}", n=1))
    print(f'Would commit "Release {version}" on {BRANCH} and tag it v{version}. Nothing was changed.')


def release(new: dict[str, str], version: str) -> None:
    """Write, commit and tag; whatever fails or interrupts, all is as it was before."""
    before, old = git("rev-parse", "HEAD"), {name: (ROOT / name).read_bytes() for name in new}
    try:
        for name, text in new.items():
            (ROOT / name).write_bytes(text.encode())
        git("commit", "--quiet", "--message", f"Release {version}", "--", *new)
        git("tag", "--annotate", "--message", f"Release {version}", f"v{version}")
    except BaseException:
        git("reset", "--quiet", before)
        for name, data in old.items():
            (ROOT / name).write_bytes(data)
        raise
    print(f"Released {version} in this clone. To publish it: git push --atomic origin {BRANCH} v{version}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a release: one commit and one tag, or nothing at all.")
    parser.add_argument("version", help="such as 0.2.0")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="show what would be done, and do nothing")
    mode.add_argument("--notes", action="store_true", help="print the changelog's section of this version")
    options = parser.parse_args()
    try:
        if options.notes:
            print(notes(options.version))
            return
        check_tree()
        check_version(options.version)
        new = changes(options.version, datetime.now(timezone.utc).date().isoformat())
        (show if options.dry_run else release)(new, options.version)
    except Refused as refusal:
        raise SystemExit(f"no release: {refusal}") from None


if __name__ == "__main__":
    main()
