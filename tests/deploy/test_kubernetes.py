"""The manifests in deploy/kubernetes: right for Kubernetes, for each other, and for our commands.

Flags are read by the real command lines, so that one that is renamed fails here.
"""

import argparse
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rtp_jax.config import ROLES, ServerConfig
from rtp_jax.errors import InvalidArgument
from rtp_jax.serving.flags import add_route_settings, add_settings, parse, settings_of
from rtp_jax.serving.main import COMMANDS
from rtp_jax.serving.members_command import source_of
from rtp_jax.serving.route_config import RouteConfig
from rtp_jax.serving.server import check_reach
from tests.deploy.custom_resources import SCHEMA_OF

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
MARGIN_S = 10  # between the end of draining and SIGKILL
PODS = ("Deployment", "LeaderWorkerSet")


def resources() -> list[dict[str, Any]]:
    """Read all manifests."""
    texts = [file.read_text() for file in sorted(FOLDER.glob("*.yaml"))]
    return [each for text in texts for each in yaml.safe_load_all(text)]


ALL = resources()


def of(*kinds: str) -> list[dict[str, Any]]:
    return [each for each in ALL if each["kind"] in kinds]


def template(resource: dict[str, Any]) -> dict[str, Any]:
    """Find the template of a resource's pods."""
    spec = resource["spec"]
    if resource["kind"] == "LeaderWorkerSet":
        return spec["leaderWorkerTemplate"]["workerTemplate"]
    return spec["template"]


def containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Go through the pods' specs and their containers, sidecars included."""
    for resource in of(*PODS):
        spec = template(resource)["spec"]
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            yield spec, container


def name_of(resource: dict[str, Any]) -> str:
    return f"{resource['kind']} {resource['metadata']['name']}"


def server_of(container: dict[str, Any]) -> tuple[ServerConfig, RouteConfig]:
    """Read a container's flags as its command does."""
    name = container["command"][1]
    parser = argparse.ArgumentParser(prog=name, allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("--served-model-name") if name == "route" else None
    if name == "route":
        add_route_settings(parser)
    else:
        add_settings(parser, server=True)
    settings = settings_of(parse(parser, container["args"]))
    assert settings.model
    if name == "serve":
        settings.engine_options()
    server = settings.server()
    check_reach(server)
    return server, settings.route()


SERVERS = [(spec, each) for spec, each in containers() if each["command"][1] != "members"]
IDS = [f"{each['name']}-{number}" for number, (_, each) in enumerate(SERVERS)]


@pytest.mark.parametrize("resource", ALL, ids=name_of)
def test_kubernetes_knows_every_field(resource):
    kubernetes = pytest.importorskip("kubernetes_validate", reason="an extra of dev: see pins")
    jsonschema = pytest.importorskip("jsonschema")

    def check(each: dict[str, Any]) -> None:
        kubernetes.validate(each, "1.34", strict=True)

    if resource["kind"] not in SCHEMA_OF:
        check(resource)
        with pytest.raises(jsonschema.ValidationError):
            check(resource | {"spek": {}})
        return
    jsonschema.validate(resource, SCHEMA_OF[resource["kind"]])
    if resource["kind"] == "LeaderWorkerSet":
        labels = template(resource)["metadata"]["labels"]
        spec = {"selector": {"matchLabels": labels}, "template": template(resource)}
        deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}}
        check(deployment | {"spec": spec})
        spec = copy.deepcopy(spec)
        spec["template"]["spec"]["containers"][0]["portz"] = []
        with pytest.raises(jsonschema.ValidationError):
            check(deployment | {"spec": spec})


@pytest.mark.parametrize(("spec", "container"), SERVERS, ids=IDS)
def test_flags_ports_and_probes_agree(spec, container):
    server, _ = server_of(container)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    expected = {"grpc": server.port, "metrics": server.metrics_port, "http": server.http_port}
    assert ports == {name: port for name, port in expected.items() if port is not None}
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["grpc"]["port"] == server.port
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "metrics"}
    assert server.auth_token_file


@pytest.mark.parametrize(("spec", "container"), SERVERS, ids=IDS)
def test_a_pod_has_the_time_to_drain(spec, container):
    server, _ = server_of(container)
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    needed = int(seconds) + server.drain_timeout_s + MARGIN_S
    assert spec["terminationGracePeriodSeconds"] >= needed


def test_a_flag_that_does_not_exist_is_found():
    broken = copy.deepcopy(SERVERS[0][1])
    broken["args"].append("--drain-time=3")
    with pytest.raises(InvalidArgument, match="RTPJ-1001"):
        server_of(broken)


def test_commands_exist_and_volumes_are_there():
    for spec, container in containers():
        program, command = container["command"]
        assert program == "rtp-jax"
        assert command in COMMANDS
        volumes = {volume["name"] for volume in spec["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert {*mounts.values()} <= volumes
        paths = re.findall(r"(?:^|=)(/[a-z]+)/", "\n".join(container["args"]), re.MULTILINE)
        assert {*paths} <= {*mounts}, container["name"]


def test_the_sidecar_writes_what_the_router_reads_and_names_services():
    services = {each["metadata"]["name"]: each for each in of("Service")}
    roles = set()
    for spec, container in containers():
        if container["command"][1] != "members":
            continue
        file, *sources = container["args"]
        router = next(each for each in spec["containers"] if each["command"][1] == "route")
        assert server_of(router)[1].members == file
        for role, name, port in map(source_of, sources):
            roles.add(role)
            service = services[name]["spec"]
            assert service["clusterIP"] == "None"  # it leads to each pod
            assert [each["port"] for each in service["ports"]] == [port]
            assert f"--role={role}" in workers_of(service["selector"])[0]["args"]
    assert roles == {"prefill", "decode"}


def workers_of(selector: dict[str, str]) -> list[dict[str, Any]]:
    """List the main containers of the pods that a selector finds."""
    found = []
    for resource in of(*PODS):
        labels = template(resource)["metadata"]["labels"]
        if selector.items() <= labels.items():
            found.append(template(resource)["spec"]["containers"][0])
    return found


def test_every_selector_finds_pods_and_ports_by_name():
    for service in of("Service"):
        found = workers_of(service["spec"]["selector"])
        assert len(found) == 1, name_of(service)
        ports = {port["name"]: port["containerPort"] for port in found[0]["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    for resource in of("Deployment"):
        labels = template(resource)["metadata"]["labels"]
        assert resource["spec"]["selector"]["matchLabels"] == labels
    for budget in of("PodDisruptionBudget"):
        assert len(workers_of(budget["spec"]["selector"]["matchLabels"])) == 1
    for monitor in of("PodMonitor"):
        found = workers_of(monitor["spec"]["selector"]["matchLabels"])
        assert len(found) == len(of(*PODS))
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            names = [{port["name"] for port in each["ports"]} for each in found]
            assert all(endpoint["port"] in each for each in names)


def test_a_policy_lets_nobody_but_us_to_the_workers_ports():
    """Every worker's gRPC is for our pods alone, and all ports that are open are there."""
    (policy,) = of("NetworkPolicy")
    spec = policy["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    (roles,) = spec["podSelector"]["matchExpressions"]
    assert (roles["key"], roles["operator"]) == ("rtp-jax/role", "In")
    ours = spec["podSelector"]["matchLabels"]
    serving = [each for each in of(*PODS) if "serve" in main_of(each)["command"]]
    assert serving
    for resource in serving:
        labels = template(resource)["metadata"]["labels"]
        assert ours.items() <= labels.items(), name_of(resource)
        assert labels["rtp-jax/role"] in roles["values"], name_of(resource)
        named = {port["name"] for port in main_of(resource)["ports"]}
        rules = {port["port"]: rule for rule in spec["ingress"] for port in rule["ports"]}
        assert {*rules} == named == {"grpc", "metrics"}
        assert rules["grpc"]["from"] == [{"podSelector": {"matchLabels": ours}}]
    assert {*roles["values"]} == {*ROLES}
    router = next(each for each in of(*PODS) if "route" in main_of(each)["command"])
    assert ours.items() <= template(router)["metadata"]["labels"].items()  # it may ask workers
    assert template(router)["metadata"]["labels"]["rtp-jax/role"] not in roles["values"]


def main_of(resource: dict[str, Any]) -> dict[str, Any]:
    return template(resource)["spec"]["containers"][0]


def test_there_is_one_of_everything_that_is_promised():
    kinds = {each["kind"] for each in ALL}
    promised = {"Deployment", "Service", "PodDisruptionBudget", "PodMonitor", "LeaderWorkerSet"}
    promised.add("NetworkPolicy")
    assert promised <= kinds
    covered = [
        frozenset(each["spec"]["selector"]["matchLabels"].items())
        for each in of("PodDisruptionBudget")
    ]
    for resource in of("Deployment"):
        labels = frozenset(template(resource)["metadata"]["labels"].items())
        assert labels in covered, name_of(resource)
