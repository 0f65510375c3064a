"""The Markdown files: every link leads somewhere, every command line is one, and those that can run offline do."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from search_spaces.reading import is_study, space_from_yaml
from search_spaces.study import STUDY_RESULTS, study_from_yaml
from search_spaces.yaml_file import parse_yaml
from sweep.cli import main
from sweep.plan.audit_options import AUDIT_OPTIONS
from sweep.plan.plan_file import plan_text
from sweep.study.result import StudyResult
from sweep.study.verdict import sentences
from tests.support.recorded_sweeps import recorded

ROOT = Path(__file__).parents[2]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("tests/*/README.md")})
FOLDERS = ("search_spaces", "trainer", "sweep", "docker", "tests")
READMES = [ROOT / "README.md", *(ROOT / folder / "README.md" for folder in FOLDERS)]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    """Yield language and text of every fenced block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Return what a link may name behind '#': headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines(path: Path, program: str) -> list[str]:
    """Return the lines of fenced blocks that begin with a program, without comments and explanations."""
    found = []
    for language, text in blocks(path):
        if language in ("", "bash", "console", "sh"):
            for line in text.replace("\\\n", " ").splitlines():
                line = re.split(r"\s+#|\s{2,}(?!-)", line.removeprefix("$ ").strip())[0].strip()
                if re.match(rf"{program}\b", line):
                    found.append(line)
    return found


def words_of(line: str) -> list[str]:
    """Return a command line as words; what stands in brackets may be left out."""
    return shlex.split(re.sub(r"\[[^\]]*\]", "", line).split(";")[0])


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


@pytest.mark.parametrize("path", READMES, ids=names(READMES))
def test_every_folder_has_a_readme(path: Path) -> None:
    assert path.is_file()


@pytest.mark.parametrize("path", PAGES, ids=names(PAGES))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file) if file else path
        assert found.exists(), f"{path}: {target}"
        assert not anchor or anchor in anchors(found), f"{path}: {target}"


@pytest.mark.parametrize("path", PAGES, ids=names(PAGES))
def test_command_lines_are_understood(path: Path) -> None:
    from sweep.cli.commands import build_parser

    parser = build_parser()
    for line in command_lines(path, "otsweep"):
        parser.parse_all(words_of(line)[1:])


@pytest.mark.parametrize("path", PAGES, ids=names(PAGES))
def test_make_targets_exist(path: Path) -> None:
    for line in command_lines(path, "make"):
        done = subprocess.run(
            ["make", "-n", *words_of(line)[1:]], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"


@pytest.mark.parametrize("path", PAGES, ids=names(PAGES))
def test_spaces_can_be_read(path: Path) -> None:
    for language, text in blocks(path):
        if language == "yaml" and re.search(r"^space:", text, re.MULTILINE):
            root = parse_yaml(text.encode(), str(path))
            if is_study(root):
                study_from_yaml(root, name="example", audit_options=AUDIT_OPTIONS)
            else:
                space_from_yaml(root, name="example")


RUNNABLE = ("front", "replay", "compare")
"""Commands that need neither training nor a server: their lines run on a recorded sweep."""


@pytest.mark.parametrize("path", PAGES, ids=names(PAGES))
def test_command_lines_that_can_run_offline_do(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for line in command_lines(path, "otsweep") if words_of(line)[1] in RUNNABLE]
    if lines:
        for name, seed in (("NAME", 0), ("A", 0), ("B", 0), *((side + str(n), n) for side in "AB" for n in (1, 2, 3))):
            plan = recorded("digits24", tmp_path)
            folder = plan.folder.rename(tmp_path / name)
            (folder / "plan.yaml").write_text(plan_text(dataclasses.replace(plan, name=name, seed=seed)))
    monkeypatch.chdir(tmp_path)
    for line in lines:
        assert main([*words_of(line)[1:], "--storage", str(tmp_path)]) == 0, line
        assert capsys.readouterr().out.strip(), line


def test_the_answer_is_that_of_the_kept_study() -> None:
    """The first sentence of the verdict stands in README, its numbers in the README of the spaces."""
    result = StudyResult.read(STUDY_RESULTS / "regularizers")
    assert sentences(result)[0] in " ".join((ROOT / "README.md").read_text().split())
    table = (ROOT / "search_spaces" / "README.md").read_text()
    for one in result.differences:
        assert f"{one.estimate:+.4f} ({one.low:+.4f} to {one.high:+.4f})" in table
