"""Files for deployment against the schemas of the systems that read them."""

import copy
import importlib.resources
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OLDEST_KUBERNETES, NEWEST_KUBERNETES = "1.29", "1.37"
OF_CLOUD_INIT = Path("/usr/lib/python3/dist-packages/cloudinit/config/schemas/schema-cloud-config-v1.json")  # Debian and Ubuntu


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def shipped(name: str) -> dict[str, Any]:
    """A schema that check-jsonschema brings."""
    package = pytest.importorskip("check_jsonschema", reason="check-jsonschema, which brings the schema, is not installed")
    schema = importlib.resources.files(package) / "builtin_schemas" / "vendor" / f"{name}.json"
    found: dict[str, Any] = json.loads(schema.read_text(encoding="utf-8"))
    return found


def wrong_in(document: Any, schema: dict[str, Any]) -> list[str]:
    """What a schema says against a document."""
    validators = pytest.importorskip("jsonschema", reason="jsonschema is not installed").validators
    return [
        f"{error.json_path}: {error.message[:200]}" for error in validators.validator_for(schema)(schema).iter_errors(document)
    ]


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, NEWEST_KUBERNETES])
@pytest.mark.parametrize("name", ["bootstrap.yaml", "peers.yaml"])
def test_kubernetes_takes_the_manifests(name: str, version: str) -> None:
    """Strictly: a field that the system does not know is wrong as well."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    found = documents(DEPLOY / "kubernetes" / name)

    for document in found:
        kubernetes_validate.validate(document, version, strict=True)
    misspelt = copy.deepcopy(found[-1])
    misspelt["spec"]["template"]["spec"]["securityContext"]["runAsNonRot"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelt, version, strict=True)


def test_the_compose_file_is_one_of_the_compose_specification() -> None:
    schema = shipped("compose-spec")
    (compose,) = documents(DEPLOY / "compose.yaml")

    assert wrong_in(compose, schema) == []
    compose["services"]["bootstrap"]["restrat"] = "always"
    assert any("restrat" in text for text in wrong_in(compose, schema))


@pytest.mark.skipif(not OF_CLOUD_INIT.exists(), reason="cloud-init, which brings the schema, is not installed")
def test_cloud_init_takes_the_user_data() -> None:
    schema = json.loads(OF_CLOUD_INIT.read_text(encoding="utf-8"))
    (cloud,) = documents(DEPLOY / "cloud-init.yaml")

    assert wrong_in(cloud, schema) == []
    cloud["runcmd"] = {"first": "reboot"}
    assert wrong_in(cloud, schema) != []


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_a_workflow_is_one_of_the_forge(path: Path) -> None:
    schema = shipped("github-workflows")
    (workflow,) = documents(path)
    workflow["on"] = workflow.pop(True, None)  # `on` is a truth value in the YAML that Python reads

    assert wrong_in(workflow, schema) == []
    workflow["jobs"]["linux"]["runs-onn"] = "ubuntu-latest"
    assert wrong_in(workflow, schema) != []
