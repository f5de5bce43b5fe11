"""`.ci/release.py`, on a repository of its own; and what is stated about the project, which must agree with it."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
VERSION, CITATION, CHANGELOG = "leace_fast/_version.py", "CITATION.cff", "CHANGELOG.md"
CHANGES = "# Changelog\n\nWhat changed.\n\n## Unreleased\n\n- A new thing.\n\n## 0.1.0 (2026-01-31)\n\n- The first.\n"
TODAY = r"\d{4}-\d\d-\d\d"


class Repository:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (".ci/release.py", CITATION):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        (folder / "leace_fast").mkdir()
        self.write(VERSION, '__version__ = "0.1.0"\n')
        self.write(CITATION, re.sub(r"(?m)^version: .*", "version: 0.1.0", self.read(CITATION)))
        self.write(CHANGELOG, CHANGES)
        self.git("init", "--quiet", "--initial-branch=main")
        for key, value in {"user.name": "A", "user.email": "a@example.org", "commit.gpgsign": "false"}.items():
            self.git("config", key, value)
        self.git("config", "tag.gpgsign", "false")
        self.commit()
        self.git("tag", "v0.1.0")

    def git(self, *command: str) -> str:
        done = subprocess.run(["git", *command], cwd=self.folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self) -> None:
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", "A commit")

    def read(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8", newline="\n")

    def state(self) -> tuple[str, ...]:
        files = (self.read(name) for name in (VERSION, CITATION, CHANGELOG))
        return (*files, self.git("for-each-ref"), self.git("status", "--porcelain"), self.git("log", "-1"))

    def release(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.folder / ".ci" / "release.py"), *arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True)

    def refuses(self, *arguments: str) -> str:
        """Return why a release is refused; it must have changed nothing."""
        before = self.state()
        done = self.release(*arguments)
        assert done.returncode == 1 and self.state() == before, done.stderr
        return done.stderr


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))  # no hook and no key of whoever runs this
    (tmp_path / "repository").mkdir()
    return Repository(tmp_path / "repository")


def test_a_release(repository: Repository) -> None:
    parent = repository.git("rev-parse", "HEAD")
    done = repository.release("0.2.0")
    assert done.returncode == 0, done.stderr
    assert "git push --atomic origin main v0.2.0" in done.stdout
    assert repository.read(VERSION) == '__version__ = "0.2.0"\n'
    citation = yaml.safe_load(repository.read(CITATION))
    date = str(citation["date-released"])
    assert citation["version"] == "0.2.0" and re.fullmatch(TODAY, date)
    assert repository.read(CHANGELOG) == CHANGES.replace("## Unreleased", f"## 0.2.0 ({date})")
    assert repository.git("status", "--porcelain") == ""
    assert repository.git("log", "-1", "--format=%s %P") == f"Release 0.2.0 {parent}"
    assert repository.git("cat-file", "-t", "v0.2.0") == "tag"
    assert repository.git("rev-parse", "v0.2.0^{commit}") == repository.git("rev-parse", "HEAD")
    assert repository.release("0.2.0", "--notes").stdout == "- A new thing.\n"


def test_one_release_after_another(repository: Repository) -> None:
    assert repository.release("0.2.0rc1").returncode == 0
    repository.write(CHANGELOG, repository.read(CHANGELOG).replace("\n## ", "\n## Unreleased\n\n- Another.\n\n## ", 1))
    repository.commit()
    assert repository.release("0.2.0").returncode == 0
    assert repository.read(CITATION).count("date-released") == 1
    assert repository.release("0.2.0", "--notes").stdout == "- Another.\n"


def test_the_first_release_has_the_version_of_the_code(repository: Repository) -> None:
    repository.git("tag", "--delete", "v0.1.0")
    repository.write(CHANGELOG, "# Changelog\n\n## 0.1.0 (unreleased)\n\n- All.\n")
    repository.commit()
    assert repository.release("0.1.0").returncode == 0
    assert re.fullmatch(rf"# Changelog\n\n## 0\.1\.0 \({TODAY}\)\n\n- All\.\n", repository.read(CHANGELOG))


def test_a_dry_run_shows_all_and_does_nothing(repository: Repository) -> None:
    before = repository.state()
    done = repository.release("0.2.0", "--dry-run")
    assert done.returncode == 0 and repository.state() == before
    for line in ('-__version__ = "0.1.0"', '+__version__ = "0.2.0"', "+version: 0.2.0", "-## Unreleased", "+## 0.2.0"):
        assert f"\n{line}" in done.stdout
    assert "tag it v0.2.0" in done.stdout


@pytest.mark.parametrize("name", [CHANGELOG, "a new file"])
def test_a_dirty_tree(repository: Repository, name: str) -> None:
    (repository.folder / name).write_text(CHANGES + "- More.\n", encoding="utf-8")
    assert name in repository.refuses("0.2.0")


def test_another_branch(repository: Repository) -> None:
    repository.git("switch", "--quiet", "--create", "mine")
    assert "the branch is mine, expected main" in repository.refuses("0.2.0")
    repository.git("switch", "--quiet", "--detach")
    assert "detached" in repository.refuses("0.2.0")


@pytest.mark.parametrize("version", ["0.0.9", "0.1.0rc1", "0.1.0.dev1"])
def test_an_older_version(repository: Repository, version: str) -> None:
    assert f"{version} is older than 0.1.0" in repository.refuses(version)


@pytest.mark.parametrize("version", ["newest", "v0.2.0", "0.2.0-rc1", "00.2", "0.2.0+mine"])
def test_no_version_as_indexes_write_it(repository: Repository, version: str) -> None:
    assert f"'{version}'" in repository.refuses(version)


def test_a_tag_that_exists(repository: Repository) -> None:
    assert "v0.1.0 exists" in repository.refuses("0.1.0")
    repository.git("tag", "v0.2.0")
    assert "v0.2.0 exists" in repository.refuses("0.2.0")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("- A new thing.\n\n", "", "says nothing below '## Unreleased'"),
        ("## Unreleased\n\n- A new thing.\n\n", "", "begins with '## 0.1.0 (2026-01-31)'"),
        (CHANGES, "# Changelog\n", "begins with ''"),
    ],
)
def test_a_changelog_that_says_nothing(repository: Repository, old: str, new: str, said: str) -> None:
    repository.write(CHANGELOG, CHANGES.replace(old, new))
    repository.commit()
    assert said in repository.refuses("0.2.0")


@pytest.mark.parametrize("name", [VERSION, CITATION])
def test_a_file_without_a_version(repository: Repository, name: str) -> None:
    repository.write(name, "nothing: here\n")
    repository.commit()
    assert f"{name} states 0 versions" in repository.refuses("0.2.0")


@pytest.mark.skipif(sys.platform == "win32", reason="hooks are scripts of sh")
@pytest.mark.parametrize("hook", ["pre-commit", "reference-transaction"])
def test_a_commit_or_a_tag_that_fails_is_undone(repository: Repository, hook: str) -> None:
    path = repository.folder / ".git" / "hooks" / hook
    only_tags = 'test "$1" = prepared && grep -q refs/tags/ || exit 0\n' if hook == "reference-transaction" else ""
    path.write_text(f"#!/bin/sh\n{only_tags}echo no such thing here >&2\nexit 1\n", encoding="utf-8")
    path.chmod(0o755)
    said = repository.refuses("0.2.0")
    assert ("git tag" if only_tags else "git commit") in said and "no such thing here" in said


def test_notes_of_what_was_not_released(repository: Repository) -> None:
    assert "states 0.1.0, expected 0.2.0" in repository.refuses("0.2.0", "--notes")
    assert repository.release("0.1.0", "--notes").stdout == "- The first.\n"
    repository.write(CHANGELOG, "# Changelog\n\n## 0.1.0 (unreleased)\n\n- All.\n")
    assert 'no heading "## 0.1.0 (date)"' in repository.refuses("0.1.0", "--notes")


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / CITATION).read_text(encoding="utf-8"))
    code = (ROOT / VERSION).read_text(encoding="utf-8")
    assert code == f'__version__ = "{citation["version"]}"\n'
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["authors"]
    (paper,) = citation["references"]
    assert paper["doi"] == "10.48550/arXiv.2306.03819" and len(paper["authors"]) == 6


def test_the_changelog_is_one_that_a_release_can_be_made_of() -> None:
    headings = re.findall(r"(?m)^## .*$", (ROOT / CHANGELOG).read_text(encoding="utf-8"))
    assert re.fullmatch(rf"## ((\S+ \()?unreleased\)?|\S+ \({TODAY}\))", headings[0], re.IGNORECASE)
    assert all(re.fullmatch(rf"## \S+ \({TODAY}\)", heading) for heading in headings[1:])


def test_the_package_reads_no_pickle_and_trusts_no_code_of_models() -> None:
    """As SECURITY.md says."""
    for path in (ROOT / "leace_fast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}, path
            if isinstance(node, ast.Call):
                options = {option.arg: ast.unparse(option.value) for option in node.keywords}
                assert options.get("trust_remote_code", "False") == "False", path
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "torch.save", "eval", "exec", "np.load", "numpy.load"), path


needs_workflows = pytest.mark.skipif(not (ROOT / ".github").exists(), reason="an sdist has no workflows")


@needs_workflows
def test_every_python_that_is_promised_is_tested() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    promised = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["linux"]["strategy"]["matrix"]["python"] == promised
    assert f'requires-python = ">={promised[0]}"' in project
    assert set(jobs["macos"]["strategy"]["matrix"]["python"]) <= set(promised)
    assert set(jobs["windows"]["strategy"]["matrix"]["python"]) <= set(promised)


@needs_workflows
@pytest.mark.parametrize("name", ["tests", "docs", "release"])
def test_workflows_run_actions_by_their_commit_and_with_least_rights(name: str) -> None:
    text = (ROOT / f".github/workflows/{name}.yml").read_text(encoding="utf-8")
    used = re.findall(r"uses: (\S+)", text)
    assert used and all(re.search(r"@[0-9a-f]{40}$", action) for action in used if not action.startswith("./"))
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
