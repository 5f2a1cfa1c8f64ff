"""The component of infra/kubernetes that serves a model: its pods have what `igpt serve` needs, and no rights more."""

import re
from typing import Any

import yaml

from flows.services import deployed_keys, settings
from flows.services.store_rights import ROLES, Rights
from flows.serving.config import END_SECONDS
from tests.infra.command_lines import calls_in_script
from tests.infra.kubernetes_objects import COMPONENTS, FOLDER, KUBERNETES, ROOT, gibibytes
from tests.infra.test_monitoring import MONITORS
from tests.rigs.compose import KEYS

SPECS: dict[tuple[str, str], dict[str, Any]] = {
    (item["kind"], item["metadata"]["name"]): item["spec"] for item in COMPONENTS["serve"]
}
DEPLOYMENT = SPECS["Deployment", "serve"]
POD = DEPLOYMENT["template"]["spec"]
(CONTAINER,) = POD["containers"]
SCRIPT = CONTAINER["command"][-1]
RAY, SERVE = calls_in_script(SCRIPT)
RAY_OPTIONS, SERVE_OPTIONS = (dict(word.split("=") for word in words if "=" in word) for words in (RAY, SERVE))
VARIABLES = {variable["name"]: variable.get("value") for variable in CONTAINER["env"]}


def test_a_pod_has_the_cores_for_its_replicas_and_one_more() -> None:
    replicas, cpus = int(SERVE_OPTIONS["--replicas"]), float(SERVE_OPTIONS["--cpus"])
    assert replicas > 1
    held = float(CONTAINER["resources"]["requests"]["cpu"])
    assert float(RAY_OPTIONS["--num-cpus"]) == (replicas + 1) * cpus == held


def test_the_object_store_fits_into_shared_memory_and_that_into_the_pods_memory() -> None:
    sizes = {volume["name"]: volume.get("emptyDir", {}).get("sizeLimit", "") for volume in POD["volumes"]}
    shared, memory = gibibytes(sizes["shared-memory"]), gibibytes(CONTAINER["resources"]["limits"]["memory"])
    assert int(RAY_OPTIONS["--object-store-memory"]) / 2**30 < shared < memory


def test_it_serves_the_champion_that_the_weekly_deployment_makes() -> None:
    assert SERVE[:3] == ["igpt", "serve", "$MODEL"]
    deployments = yaml.safe_load((FOLDER / "deployments.yaml").read_text())["deployments"]
    (weekly,) = [deployment for deployment in deployments if deployment["name"] == "weekly"]
    model = weekly["parameters"]["config"]["pretrain"]["tracking"]["model_name"]
    assert VARIABLES["MODEL"] == f"{model}@champion"


def test_compose_runs_the_same() -> None:
    service = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())["services"]["serve"]
    assert service["profiles"] == ["serve"]
    assert service["command"][-1].replace("$$", "$") == SCRIPT
    model = service["environment"].pop("MODEL")
    assert model == f"${{SERVE_MODEL:-{VARIABLES['MODEL']}}}"
    required = service["environment"].pop("IGPT_REQUIRE_SIGNED")
    assert required == f"${{IGPT_REQUIRE_SIGNED:-{VARIABLES['IGPT_REQUIRE_SIGNED']}}}"
    of_compose = {"MODEL", "IGPT_REQUIRE_SIGNED"}
    literals = {name: value for name, value in VARIABLES.items() if value is not None and name not in of_compose}
    assert literals.items() <= service["environment"].items()
    folders = {
        volume["target"]: volume["volume"]["subpath"] for volume in service["volumes"] if isinstance(volume, dict)
    }
    assert folders == {KEYS: "serve", "/home/igpt/.mlflow": deployed_keys.SERVING_LOGIN}
    assert float(service["shm_size"].removesuffix("g")) * 2**30 > int(RAY_OPTIONS["--object-store-memory"])
    assert int(service["stop_grace_period"].removesuffix("s")) == POD["terminationGracePeriodSeconds"]
    ((outside, inside),) = [port.removeprefix("127.0.0.1:").split(":") for port in service["ports"]]
    assert inside == SERVE_OPTIONS["--port"] != outside


def test_its_ray_is_its_own_with_a_token_of_its_own() -> None:
    assert "--head" in RAY and VARIABLES["RAY_ADDRESS"] == f"127.0.0.1:{RAY_OPTIONS['--port']}"
    assert VARIABLES["RAY_AUTH_MODE"] == "token" and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(VARIABLES)
    assert re.search(r"^RAY_AUTH_TOKEN=\$\(python .*token_hex\(32\)", SCRIPT)
    assert SCRIPT.index("export RAY_AUTH_TOKEN") < SCRIPT.index("ray start")
    # By this label Ray's nodes may connect to each other.
    assert DEPLOYMENT["template"]["metadata"]["labels"] == {"app": "serve"}


def test_its_keys_read_models_and_nothing_else() -> None:
    (keys,) = [volume["projected"]["sources"] for volume in POD["volumes"] if "projected" in volume]
    key, trusted = [source["secret"] for source in keys]
    assert ROLES[key["items"][0]["key"]] == Rights(read=("mlflow",)) and len(key["items"]) == 1
    # The public keys of models, and none that signs.
    assert trusted["items"] == [{"key": deployed_keys.TRUSTED_KEYS, "path": deployed_keys.TRUSTED_KEYS}]
    (login,) = [volume["secret"] for volume in POD["volumes"] if "secret" in volume]
    assert POD["automountServiceAccountToken"] is False
    assert settings.MLFLOW_RETRIES.items() <= VARIABLES.items()
    # Not MLflow's administrator.
    assert login["items"] == [{"key": deployed_keys.SERVING_LOGIN, "path": "credentials"}]
    comments = (KUBERNETES / "components" / "serve" / "kustomization.yaml").read_text()
    assert f"the user `{deployed_keys.SERVING_USER}` of MLflow" in comments and "MLFLOW_SERVE_PASSWORD" in comments


def test_a_pod_gets_requests_when_a_replica_has_answered_and_ends_when_its_requests_have() -> None:
    ports = {port["name"]: str(port["containerPort"]) for port in CONTAINER["ports"]}
    assert (SERVE_OPTIONS["--host"], SERVE_OPTIONS["--port"]) == ("0.0.0.0", ports["http"])
    asked = {name: CONTAINER[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert asked == {"startupProbe": "/ping", "readinessProbe": "/-/healthz", "livenessProbe": "/-/healthz"}
    assert {CONTAINER[name]["httpGet"]["port"] for name in asked} == {"http"}
    program, pause = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep" and int(pause) >= 5
    assert POD["terminationGracePeriodSeconds"] > int(pause) + END_SECONDS


def test_there_is_always_a_pod_that_serves() -> None:
    budget = SPECS["PodDisruptionBudget", "serve"]
    assert DEPLOYMENT["replicas"] > budget["minAvailable"] >= 1
    assert DEPLOYMENT["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    (spread,) = POD["topologySpreadConstraints"]
    labels = DEPLOYMENT["template"]["metadata"]["labels"]
    assert labels == spread["labelSelector"]["matchLabels"] == budget["selector"]["matchLabels"]
    assert labels == SPECS["Service", "serve"]["selector"]


def test_consumers_call_it_and_prometheus_scrapes_every_pod() -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    allowed = {rule["ports"][0]["port"]: rule["from"] for rule in SPECS["NetworkPolicy", "serve"]["ingress"]}
    assert allowed == {
        ports["http"]: [{"namespaceSelector": {"matchLabels": {"igpt.io/consumer": "yes"}}}],
        ports["metrics"]: [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    }
    assert RAY_OPTIONS["--metrics-export-port"] == str(ports["metrics"])
    monitor = MONITORS["igpt-serve"]["spec"]
    assert monitor["selector"]["matchLabels"] == DEPLOYMENT["template"]["metadata"]["labels"]
    assert [endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]] == ["metrics"]
