"""Which pods of infra/kubernetes may connect to which, and that what they call is there."""

import re
from typing import Any

from tests.infra.kubernetes_objects import OBJECTS, RAY, WORKERS, containers, pods


def test_every_called_address_is_a_service_whose_port_leads_to_a_container() -> None:
    services = {item["metadata"]["name"]: item["spec"] for item in OBJECTS if item["kind"] == "Service"}
    for name, service in services.items():
        (selected,) = [pod for _, pod, labels in pods() if labels.items() >= service["selector"].items()]
        ports = [port for container in selected["containers"] for port in container["ports"]]
        called = [port["containerPort"] for port in ports if port["name"] != "metrics"]  # Prometheus calls each pod
        assert [port["targetPort"] for port in service["ports"]] == called, name
    addresses = {(name, port["port"]) for name, service in services.items() for port in service["ports"]}
    addresses.add((f"{RAY['metadata']['name']}-head-svc", 6379))  # created by KubeRay
    for name, container in containers():
        for variable in container.get("env", []):
            for host, port in re.findall(r"(?://|^)([a-z][a-z-]+):(\d+)", variable.get("value", "")):
                assert (host, int(port)) in addresses, f"{name} calls {host}:{port}"


def test_the_network_policies_allow_every_call_and_no_task_to_reach_a_database() -> None:
    policies = {item["metadata"]["name"]: item["spec"] for item in OBJECTS if item["kind"] == "NetworkPolicy"}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}

    def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
        expressions = selector.get("matchExpressions", [])
        return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
            labels.get(expression["key"]) in expression["values"] for expression in expressions
        )

    def may(caller: str, called: str, port: int) -> bool:
        """Whether a pod may open a connection to a port of another."""
        labels_of = {name: labels for name, _, labels in pods()}
        directions = {"Ingress": (called, caller, "from"), "Egress": (caller, called, "to")}
        for kind, (own, other, key) in directions.items():
            of_kind = [policy for policy in policies.values() if kind in policy["policyTypes"]]
            applying = [policy for policy in of_kind if matches(policy["podSelector"], labels_of[own])]
            rules = [rule for policy in applying for rule in policy.get(kind.lower(), [])]
            passing = [
                rule
                for rule in rules
                if any(matches(peer["podSelector"], labels_of[other]) for peer in rule[key] if "podSelector" in peer)
                and port in [allowed["port"] for allowed in rule.get("ports", [{"port": port}])]
            ]
            if applying and not passing:
                return False
        return True

    assert may("mlflow", "postgres", 5432) and may("prefect-server", "postgres", 5432)
    for worker in WORKERS:
        assert may(worker, "mlflow", 5000) and may(worker, "prefect-server", 4200) and may(worker, "ray head", 6379)
        assert not may(worker, "postgres", 5432)
    assert may("deploy", "prefect-server", 4200)
    assert may("backup", "postgres", 5432) and not may("backup", "mlflow", 5000)
    assert all(may("clean", *called) for called in (("postgres", 5432), ("mlflow", 5000), ("prefect-server", 4200)))
    assert may("ray builds", "ray head", 6379) and may("ray training", "ray builds", 10_002)
    for task in ("ray builds", "ray training"):
        for called, port in (("postgres", 5432), ("mlflow", 5000), ("prefect-server", 4200)):
            assert not may(task, called, port)
    assert not may("postgres", "mlflow", 5000)
    assert may("serve", "mlflow", 5000)
    for other in {pod for pod, _, _ in pods()} - {"serve"}:
        assert not may(other, "serve", 5000) and not may(other, "serve", 6379), "only other namespaces call it"
        assert other == "mlflow" or not any(may("serve", other, port) for port in (4200, 5432, 6379, 10_002)), other
    assert not may("serve", "serve", 6379)
    assert not may("mlflow", "ray head", 6379) and not may("prefect-server", "ray builds", 10_002)
    # What leaves the namespace, by who may: DNS for all, the bucket store, and two that call other addresses.
    outside: dict[str, set[str]] = {}
    for name, policy in policies.items():
        for rule in policy.get("egress", []):
            if not any("podSelector" in peer for peer in rule["to"]):
                outside[name] = {pod for pod, _, labels in pods() if matches(policy["podSelector"], labels)}
    everybody = {pod for pod, _, _ in pods()}
    assert outside == {
        "dns": everybody,
        "store": everybody - {"postgres", "prefect-server", "deploy", "serve"},
        "serve": {"serve"},
        "notifications": {"prefect-server"},
        "autoscaler": {"ray head"},
    }
