"""The architecture, held by reading the imports: who may know whom, and what an import may cost."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("search_spaces", "trainer", "sweep")

ROOMS = [
    ["trainer.errors", "trainer.interrupts", "trainer.output"],
    ["trainer.words", "trainer.number", "trainer.intervals", "trainer.parallel", "trainer.progress", "trainer.answers"],
    ["trainer.precision"],
    ["trainer.plugins"],
    ["trainer.fields", "trainer.presets", "trainer.report", "trainer.cost", "trainer.arguments", "trainer.files"],
    ["trainer.config", "trainer.human_agreement"],
    ["trainer.crowds"],
    ["trainer.own_crowds"],
    ["trainer.data", "trainer.models", "trainer.attacks"],
    ["trainer.own_functions", "trainer.own_models"],
    ["trainer.invariance", "trainer.objective"],
    ["trainer.summary", "trainer.training"],
    ["trainer.__main__"],
    ["search_spaces"],
    ["sweep.environment", "sweep.front", "sweep.ray_internals"],
    ["sweep.plan"],
    ["sweep.ledger"],
    ["sweep.state"],
    ["sweep.search"],
    ["sweep.engine", "sweep.people", "sweep.report"],
    ["sweep.forecast", "sweep.audit", "sweep.cluster"],
    ["sweep.study", "sweep.judge"],
    ["sweep.tracking"],
    ["sweep.api"],
    ["sweep.cli"],
    ["sweep.__main__"],
]
"""From the ground up: a room imports from floors below its own. A new room is given its place in this list."""

FOR_PEOPLE = {
    *(
        "Interrupted",
        "Planned",
        "Report",
        "Running",
        "Sweep",
        "audit",
        "compare",
        "export",
        "judge",
        "plan",
        "resume",
        "run",
        "start",
        "study",
        "trial",
    ),
    *("open_sweep", "InputError", "OtsweepError", "StorageFailed", "TrialFailed"),
}
KEPT_OPEN = {"sweep.cli": {"main"}, "sweep": FOR_PEOPLE, "trainer.training": {"check_attack"}}
"""What a door offers to people and programs alone."""

TENSORS_ONLY = [
    "trainer.attacks",
    "trainer.invariance.affine_draws",
    "trainer.invariance.alignment_grid",
    "trainer.invariance.alignments",
    "trainer.invariance.attacks",
    "trainer.invariance.class_index",
    "trainer.invariance.clusters",
    "trainer.invariance.lower_bounds",
    "trainer.invariance.neighbours",
    "trainer.objective.transport",
]
"""Take tensors and numbers, never a configuration."""

TRAINER_NEEDS = {"torch", "torchvision", "numpy", "scipy", "sklearn", "filelock", "PIL"}
"""filelock is wherever torch is, and PIL wherever torchvision is: these need them."""
BROUGHT_ALONG = {"sqlalchemy": "mlflow", "uvicorn": "mlflow", "PIL": "torchvision"}
"""Imported under the dependency that brings it: MLflow's own store and server are theirs."""
HEAVY = ("torch", "torchvision", "ray", "mlflow", "optuna", "matplotlib", "sklearn", "scipy")


class Import(NamedTuple):
    """One imported module, as seen from one place."""

    target: str
    """Dotted name; a submodule where `from package import module` names one."""

    names: tuple[str, ...]
    """What is taken from it by name."""

    line: int

    at_start: bool
    """Whether it runs when the importing module is imported: outside of functions and not for types alone."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
OURS = sorted(FILES)


def nodes(tree: ast.AST, at_start: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes below, and whether each runs at import."""
    for child in ast.iter_child_nodes(tree):
        typing_only = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        deferred = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or typing_only
        yield child, at_start
        yield from nodes(child, at_start and not deferred)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


@cache
def imports(module: str) -> list[Import]:
    found = []
    for node, at_start in nodes(tree_of(module)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, (), node.lineno, at_start) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are written in full"
            names = tuple(alias.name for alias in node.names)
            found += [
                Import(f"{node.module}.{name}", (), node.lineno, at_start)
                for name in names
                if f"{node.module}.{name}" in FILES
            ]
            if any(f"{node.module}.{name}" not in FILES for name in names):
                found.append(Import(str(node.module), names, node.lineno, at_start))
    return found


def top(name: str) -> str:
    return name.partition(".")[0]


def ours(module: str) -> list[Import]:
    return [each for each in imports(module) if top(each.target) in PACKAGES]


def foreign(module: str) -> list[Import]:
    """Imports of other people's code."""
    return [each for each in imports(module) if top(each.target) not in {*PACKAGES, *sys.stdlib_module_names}]


@cache
def owners_of_packages() -> Mapping[str, list[str]]:
    """The distributions that each importable package comes from; reading them all takes a second."""
    return importlib.metadata.packages_distributions()


def places(module: str, found: list[Import]) -> list[str]:
    return [f"{module}:{each.line} imports {each.target}" for each in found]


def test_there_are_no_cycles() -> None:
    """Imports inside functions count too: a cycle that is hidden is still one."""
    graph = {module: {each.target for each in ours(module)} for module in OURS}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


@pytest.mark.parametrize("module", OURS)
def test_our_imports_name_modules_that_exist(module: str) -> None:
    assert places(module, [each for each in ours(module) if each.target not in FILES]) == []


@pytest.mark.parametrize("module", [module for module in OURS if module.startswith("trainer")])
def test_the_trainer_runs_where_only_torch_is(module: str) -> None:
    """POT alone may be missing, so it is imported where exact transport is asked for."""
    wrong = [
        each
        for each in foreign(module)
        if top(each.target) not in TRAINER_NEEDS and not (top(each.target) == "ot" and not each.at_start)
    ]
    wrong += [each for each in ours(module) if top(each.target) != "trainer"]
    assert places(module, wrong) == []


FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


def room(module: str) -> str:
    """The folder of a module two levels down, or the module itself where it stands at the top of a package."""
    return top(module) if top(module) == "search_spaces" else ".".join(module.split(".")[:2])


@pytest.mark.parametrize("module", [module for module in OURS if module not in ("sweep", "trainer")])
def test_imports_go_one_way_from_room_to_room(module: str) -> None:
    here = room(module)
    assert here in FLOORS, f"{module} has no place in ROOMS"
    outside = [each for each in ours(module) if room(each.target) != here]
    assert places(module, [each for each in outside if FLOORS.get(room(each.target), 99) >= FLOORS[here]]) == []


@pytest.mark.parametrize("module", OURS)
def test_a_room_is_entered_by_its_door(module: str) -> None:
    """Another room imports from the folder itself, whose `__init__` lists what it offers."""
    inside = [each for each in ours(module) if room(each.target) != room(module)]
    doors = {name for name, path in FILES.items() if path.name == "__init__.py"}
    assert places(module, [each for each in inside if each.target not in doors and room(each.target) in doors]) == []


@pytest.mark.parametrize("module", [module for module, path in FILES.items() if path.name == "__init__.py"])
def test_a_door_offers_what_other_rooms_use_and_nothing_else(module: str) -> None:
    offered = {name for each in ours(module) for name in each.names}
    used = {
        name for other in OURS if room(other) != module for each in ours(other) if each.target == module
        for name in each.names
    }  # fmt: skip
    assert offered - used <= KEPT_OPEN.get(module, set())


@pytest.mark.parametrize("module", OURS)
def test_nobody_imports_what_another_keeps_for_itself(module: str) -> None:
    assert [name for each in ours(module) for name in each.names if name.startswith("_")] == []


def top_level_names(module: str) -> set[str]:
    """What a module defines, its imports aside."""
    names = set()
    for node in tree_of(module).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return {name for name in names if not name.startswith("__")}


@cache
def words_elsewhere() -> Mapping[str, set[str]]:
    """Every word of the project's and the tests' code, with the files that it stands in."""
    found: dict[str, set[str]] = {}
    for path in (*FILES.values(), *(ROOT / "tests").rglob("*.py"), ROOT / "pyproject.toml"):
        for word in set(re.findall(r"\w+", path.read_text())):
            found.setdefault(word, set()).add(str(path))
    return found


@pytest.mark.parametrize("module", OURS)
def test_what_is_used_in_its_own_module_alone_begins_with_an_underscore(module: str) -> None:
    own = str(FILES[module])
    alone = {name for name in top_level_names(module) if words_elsewhere()[name] == {own}}
    assert sorted(name for name in alone if not name.startswith("_")) == []


@pytest.mark.parametrize("module", [module for module in OURS if module.startswith(tuple(TENSORS_ONLY))])
def test_attacks_and_transport_take_no_configuration(module: str) -> None:
    assert not {"TrialConfig", "EvaluationConfig"} & {name for each in ours(module) for name in each.names}


@pytest.mark.parametrize("module", [module for module in OURS if module.startswith("search_spaces")])
def test_search_spaces_know_configurations_and_reports_alone(module: str) -> None:
    known = {f"trainer.{name}" for name in ("config", "errors", "fields", "number", "presets", "report", "words")}
    wrong = [each for each in ours(module) if top(each.target) != "search_spaces" and each.target not in known]
    wrong += [each for each in foreign(module) if top(each.target) not in {"yaml", "optuna"}]
    wrong += [each for each in foreign(module) if top(each.target) == "optuna" and each.at_start]
    assert places(module, wrong) == []


@pytest.mark.parametrize("module", OURS)
def test_mlflow_is_imported_by_its_room_alone_and_ray_by_the_sweep_alone(module: str) -> None:
    allowed = {"mlflow": module.startswith("sweep.tracking"), "ray": module.startswith("sweep.")}
    assert places(module, [each for each in foreign(module) if not allowed.get(top(each.target), True)]) == []


@pytest.mark.parametrize("module", OURS)
def test_whatever_is_imported_is_a_declared_dependency(module: str) -> None:
    """Else it works here by luck: some other library brought it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[<>=!~ ]", line)[0].lower().replace("_", "-") for line in project["dependencies"]}
    owners = owners_of_packages()
    wrong = [
        each
        for each in foreign(module)
        if not declared & {owner.lower().replace("_", "-") for owner in owners.get(top(each.target), [])}
        and BROUGHT_ALONG.get(top(each.target)) not in declared
    ]
    assert places(module, wrong) == []


@pytest.mark.parametrize("module", OURS)
def test_nothing_that_a_stranger_wrote_is_unpickled(module: str) -> None:
    for node, _ in nodes(tree_of(module)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        place = f"{module}:{node.lineno}"
        assert called != "torch.load" or options.get("weights_only") == "True", place
        assert options.get("allow_pickle", "False") == "False", place
        assert called not in {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "pickle.load"}, place
        # CIFAR-10 comes as pickles; each is opened only after its official checksum was found right.
        assert called != "pickle.loads" or module == "trainer.data.formats", place


def loaded_by(modules: list[str]) -> set[str]:
    """The heavy libraries that a fresh interpreter has loaded after importing modules."""
    code = f"import sys, {', '.join(modules)}; print(*(set({HEAVY}) & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


LIGHT = [
    "search_spaces",
    "trainer.config",
    "trainer.report",
    "trainer.presets",
    "sweep.plan.plan",
    "sweep.plan.paths",
    "sweep.cli.commands",
    "sweep.cluster",
    "sweep.report",
]


@pytest.mark.parametrize("module", [module for module in LIGHT if module in FILES])
def test_what_every_command_imports_is_light(module: str) -> None:
    assert loaded_by([module]) == set()


def test_the_driver_pays_for_no_torch() -> None:
    """Workers import it; a driver that did would take seconds and hundreds of megabytes for nothing."""
    assert "torch" not in loaded_by([module for module in OURS if module.startswith("sweep")])
