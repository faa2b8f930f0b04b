"""Release what pyproject.toml calls the version: check, build, tag. Pushing and publishing stay
yours.

    python release.py          what would be done, and everything that stands against it
    python release.py --yes    the same, done

Checked are versions, notes, the tag and that nothing is left to commit; run `bash .ci/run` first.
The version stands in pyproject.toml alone; CHANGELOG.md begins with its section, and CITATION.cff
says the same. After a release, raise it there and begin a section.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

VERSION = re.compile(r"\d+\.\d+\.\d+")


def main() -> None:
    """Print the steps, or take them; end with an error where anything stands against it."""
    parser = argparse.ArgumentParser(
        description="Check, build and tag the version in pyproject.toml."
    )
    parser.add_argument("--yes", action="store_true", help="do it, rather than say it")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).parent, help="of the repository"
    )
    asked = parser.parse_args()

    root = asked.root
    version = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    notes = section(root, version)
    against = objections(root, version, notes)
    if against:
        sys.exit("\n".join(f"release: {reason}" for reason in against))

    print(f"{version}:\n\n{notes}\n")
    if asked.yes:  # what an earlier version left is not to be published with this one
        shutil.rmtree(root / "dist", ignore_errors=True)
    for step in steps(version, notes):
        print("+", " ".join(word if "\n" not in word else "NOTES" for word in step), flush=True)
        if asked.yes:
            subprocess.run(step, cwd=root, check=True)
    print(
        "then: git push --follow-tags, and publish dist/; an index takes a wheel of Linux once "
        "`auditwheel repair` has named the C library that it needs"
        if asked.yes
        else "nothing done: --yes does it"
    )


def section(root: Path, version: str) -> str:
    """What CHANGELOG.md says of a version, which has to be its first section; "" if it is not."""
    text = (root / "CHANGELOG.md").read_text("utf-8")
    _, _, rest = text.partition("\n## ")
    title, _, body = rest.partition("\n")
    return body.partition("\n## ")[0].strip() if title.split()[:1] == [version] else ""


def objections(root: Path, version: str, notes: str) -> list[str]:
    """Everything that stands against a release, each with what to do."""
    found = []
    if not VERSION.fullmatch(version):
        found.append(f"pyproject.toml: version {version}: write it as 1.2.3")
    if not notes:
        found.append(f"CHANGELOG.md: its first section is not {version}, or is empty")
    if f"\nversion: {version}\n" not in (root / "CITATION.cff").read_text("utf-8"):
        found.append(f"CITATION.cff: has another version: write {version}")
    if git(root, "tag", "--list", tag(version)):
        found.append(f"{tag(version)} is there already: raise the version in pyproject.toml")
    if git(root, "status", "--porcelain"):
        found.append("there are changes that are not committed: commit or stash them")
    if git(root, "branch", "--show-current") != "main":
        found.append("not on main: git switch main")
    return found


def steps(version: str, notes: str) -> list[list[str]]:
    """The commands; a build that fails leaves no tag."""
    # verbatim, since git would take lines that begin with # for comments
    text = f"{version}\n\n{notes}\n"
    return [
        [sys.executable, "-m", "build"],
        ["git", "tag", "--annotate", "--cleanup=verbatim", tag(version), "--message", text],
    ]


def tag(version: str) -> str:
    """The name of its tag."""
    return f"v{version}"


def git(root: Path, *words: str) -> str:
    """What git prints."""
    done = subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
