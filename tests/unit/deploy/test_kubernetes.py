"""The manifests: what is built from them agrees with kvmon and with itself, and locks its containers up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bcrypt
import pytest
import yaml

from kvmon.adapters.settings import Settings
from kvmon.alerts import load_thresholds, rule_groups, written
from kvmon.dashboards import NAMES, text
from kvmon.errors import InputError
from kvmon.exporter.app import HEALTHY_PATH, READY_PATH
from kvmon.exporter.server import DEFAULT_PORT
from kvmon.exporter.web.config import read_web_config
from tests.certificates import Authority
from tests.unit.deploy.files import KUBERNETES, documents, kustomized, parsed

WORKLOADS = ["base", "examples/data-parallel", "examples/production"]
BINARY = {"Mi": 1 << 20, "Gi": 1 << 30}


def of_kind(objects: list[Any], kind: str) -> Any:
    """The one object of a kind."""
    (found,) = [one for one in objects if one["kind"] == kind]
    return found


def pod_of(folder: str) -> dict[str, Any]:
    """The pod of what a folder makes."""
    spec = of_kind(kustomized(folder), "Deployment")["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def containers(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every container by its name."""
    return {one["name"]: one for one in [*spec["initContainers"], *spec["containers"]]}


def variables(container: dict[str, Any]) -> dict[str, str]:
    """Its environment."""
    return {one["name"]: one["value"] for one in container.get("env", [])}


def quantity(text: str) -> int:
    """Bytes of a quantity of Kubernetes, as far as they are used here."""
    return int(text[:-2]) * BINARY[text[-2:]]


@pytest.mark.parametrize("folder", WORKLOADS)
def test_engine_and_sidecar_look_at_the_same_place(folder: str) -> None:
    """The engine's variables are those kvmon reads; both have the volume at the directory that they are told."""
    spec = pod_of(folder)
    engine, sidecar = (containers(spec)[name] for name in ("vllm", "kvmon"))
    settings = Settings.from_environment(variables(engine))
    assert settings is not None and settings.group_readable
    places = {one["name"]: one["mountPath"] for one in engine["volumeMounts"]}
    assert places["recordings"] == str(settings.directory)
    assert places["kvmon-probe"] == variables(engine)["PYTHONPATH"]
    options = parsed(sidecar["args"])
    places = {one["name"]: one["mountPath"] for one in sidecar["volumeMounts"]}
    assert list(options["directories"]) == [places["recordings"]] == [str(settings.directory)]
    assert options["state_dir"] == places["kvmon-state"]
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"]


@pytest.mark.parametrize("folder", WORKLOADS)
def test_the_volume_has_room_for_every_rank(folder: str) -> None:
    """More than the budget of all ranks, in memory, so that it is full before the pod is evicted."""
    spec = pod_of(folder)
    engine = containers(spec)["vllm"]
    ranks = [int(word.partition("=")[2]) for word in engine["args"] if word.startswith("--data-parallel-size=")]
    settings = Settings.from_environment(variables(engine))
    assert settings is not None
    volume = next(one["emptyDir"] for one in spec["volumes"] if one["name"] == "recordings")
    assert volume["medium"] == "Memory"
    limit = quantity(volume["sizeLimit"])
    assert settings.budget * sum(ranks or [1]) * 1.2 <= limit
    assert limit * 4 <= quantity(engine["resources"]["limits"]["memory"]), "it counts against the engine's memory"


@pytest.mark.parametrize("folder", WORKLOADS)
def test_every_container_is_locked_up(folder: str) -> None:
    """No root, no capability, no way to more; the sidecar's root is read-only; what is mounted is declared."""
    spec = pod_of(folder)
    assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec.get("shareProcessNamespace") and not spec.get("hostPID")
    found = containers(spec)
    users = {name: one["securityContext"]["runAsUser"] for name, one in found.items()}
    assert 0 not in users.values() and users["vllm"] != users["kvmon"]
    for name, one in found.items():
        security = one["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]} and security["allowPrivilegeEscalation"] is False
        assert security.get("readOnlyRootFilesystem", False) or name == "vllm"
        assert one["resources"]["limits"]["memory"] and one["resources"]["requests"]
        assert {mount["name"] for mount in one["volumeMounts"]} <= {volume["name"] for volume in spec["volumes"]}


@pytest.mark.parametrize("folder", WORKLOADS)
def test_probes_ask_what_the_exporter_answers(folder: str) -> None:
    """Alive and ready are asked at their paths, at a port that is listened on, by the scheme that is spoken there."""
    objects = kustomized(folder)
    sidecar = containers(pod_of(folder))["kvmon"]
    asked = {name: sidecar[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert [one["path"] for one in asked.values()] == [HEALTHY_PATH, HEALTHY_PATH, READY_PATH]
    assert sidecar["restartPolicy"] == "Always"
    (port,) = sidecar["ports"]
    assert port["containerPort"] == DEFAULT_PORT and {one["port"] for one in asked.values()} == {port["name"]}
    options = parsed(sidecar["args"])
    assert [str(address) for address in options["listen"]] == [f":{DEFAULT_PORT}"]
    schemes = {one.get("scheme", "HTTP") for one in asked.values()}
    assert schemes == {"HTTPS" if options["web_config"] else "HTTP"}
    opened = of_kind(objects, "NetworkPolicy")["spec"]["ingress"]
    assert [rule.get("from") is not None for rule in opened for one in rule["ports"] if one["port"] == "kvmon"] == [
        True
    ]


def test_the_component_repeats_the_arguments_of_the_base() -> None:
    """A patch replaces a list as a whole, so this one has to say again what the base says."""
    base, more = (containers(pod_of(folder))["kvmon"]["args"] for folder in ("base", "examples/production"))
    assert more[: len(base)] == base


def test_the_web_configuration_wants_a_password_first(tmp_path: Path) -> None:
    """The example is refused as it is, for its password alone, and taken with a real one."""
    pair = Authority(tmp_path).sign("server")
    (tmp_path / "tls.crt").write_bytes(pair.cert.read_bytes())
    (tmp_path / "tls.key").write_bytes(pair.key.read_bytes())
    example = (KUBERNETES / "components" / "web-auth" / "web.yml").read_text(encoding="utf-8")
    file = tmp_path / "web.yml"
    file.write_text(example, encoding="utf-8")
    with pytest.raises(InputError, match=r"basic_auth_users"):
        read_web_config(file)
    (placeholder,) = yaml.safe_load(example)["basic_auth_users"].values()
    file.write_text(example.replace(placeholder, bcrypt.hashpw(b"x", bcrypt.gensalt(4)).decode()), encoding="utf-8")
    assert read_web_config(file).guards >= {"basic_auth_users", "tls_server_config"}


def test_a_capture_is_kept_when_the_pod_goes() -> None:
    """The hook runs `kvmon capture` on the volume of the recordings, into one that outlives the pod."""
    spec = pod_of("examples/production")
    sidecar = containers(spec)["kvmon"]
    shell, flag, script = sidecar["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, flag) == ("sh", "-c")
    words = script[: script.index(" -o ")].split()[1:]
    options = parsed([*words, "-o", "/captures/x.kvmon"])
    places = {one["mountPath"]: one["name"] for one in sidecar["volumeMounts"]}
    volumes = {one["name"]: one for one in spec["volumes"]}
    assert places[str(options["directory"])] == "recordings"
    assert "persistentVolumeClaim" in volumes[places["/captures"]]


@pytest.mark.parametrize("folder", ["monitoring", "monitoring-auth"])
def test_monitoring_finds_the_sidecars(folder: str) -> None:
    """The PodMonitor's labels and port are the pod's; its limit is above that of a page."""
    monitor = of_kind(kustomized(folder), "PodMonitor")["spec"]
    template = of_kind(kustomized("base"), "Deployment")["spec"]["template"]
    assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in containers(template["spec"])["kvmon"]["ports"]}
    assert (endpoint.get("scheme", "http"), "basicAuth" in endpoint) in (("http", False), ("https", True))
    page = parsed(["exporter", "--dir", "/run/kvmon"])["max_series"]
    assert 0 < page < monitor["sampleLimit"]


def test_rules_and_dashboards_are_todays() -> None:
    """The PrometheusRule is what `kvmon alerts` writes; every dashboard is a ConfigMap that Grafana's sidecar takes."""
    rules = written(rule_groups(load_thresholds(None)), "prometheusrule")
    for name, content in rules.items():
        command = "kvmon alerts -o deploy/kubernetes/monitoring --format prometheusrule --force"
        assert (KUBERNETES / "monitoring" / name).read_text(encoding="utf-8") == content, f"run '{command}'"
    maps = [one for one in kustomized("monitoring") if one["kind"] == "ConfigMap"]
    assert {file: data for one in maps for file, data in one["data"].items()} == {
        f"{name}.json": text(name) for name in NAMES
    }
    assert all(one["metadata"]["labels"]["grafana_dashboard"] == "1" for one in maps)
    assert all(len(data.encode()) < 1 << 20 for one in maps for data in one["data"].values())


@pytest.mark.parametrize("version", ["1.29", "1.33", "1.37"])
def test_manifests_fit_the_schema_of_kubernetes(version: str) -> None:
    """Strictly: a field that this version does not know is refused."""
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate").validate
    for folder in WORKLOADS:
        for one in kustomized(folder):
            validate(yaml.safe_load(yaml.safe_dump(one)), version, strict=True)


def test_every_kustomization_names_files_that_are_there() -> None:
    """Also where no kubectl is: resources, components, patches and files exist."""
    for path in KUBERNETES.rglob("kustomization.yaml"):
        (body,) = documents(path)
        named = [*body.get("resources", []), *body.get("components", [])]
        named += [patch["path"] for patch in body.get("patches", []) if "path" in patch]
        named += [file for maker in body.get("configMapGenerator", []) for file in maker["files"]]
        assert [name for name in named if not (path.parent / name).exists()] == []
