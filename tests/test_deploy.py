"""deploy/: what can be checked of it without Docker and Kubernetes."""

import re
import shlex

import pytest
import yaml
from helpers import ROOT

from ppcls.cli.serve import name_models, parse

DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")


def test_the_image_has_what_setup_reads_and_starts_the_server():
    copied = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert copied and all((ROOT / name).exists() for line in copied for name in line.split())
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    extras = re.findall(r"'\.\[(.+?)\]'", DOCKERFILE)
    assert extras == ["openvino,serve"] and all(f'"{name}": [' in setup for name in extras[0].split(","))
    command = yaml.safe_load(re.search(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)[1])
    assert command[:2] == ["ppcls", "serve"]
    (example,) = re.findall(r"docker run .* ppcls-serve (.+)$", DOCKERFILE, re.MULTILINE)
    args = parse([*command[2:], *shlex.split(example)])
    assert (args.host, args.port, name_models(args.models)) == ("0.0.0.0", 8000, {"lite0": "/models/lite0"})


def test_the_manifest_has_the_servers_addresses():
    pytest.importorskip("starlette")
    from ppcls.serving.access_log import AccessLog
    from ppcls.serving.app import Addresses, Server
    from ppcls.serving.limits import Limits

    runtime, service = yaml.safe_load_all((ROOT / "deploy/kserve.yaml").read_text(encoding="utf-8"))
    (container,) = runtime["spec"]["containers"]
    assert name_models(parse(container["args"][0].replace("{{.Name}}", "lite0").split()).models) == {
        "lite0": "/mnt/models"
    }
    log = AccessLog()
    paths = {route.path for route in Addresses(Server(["lite0"], Limits(), log)).routes()}
    log.close()
    probes = [container[f"{kind}nessProbe"]["httpGet"] for kind in ("live", "readi")]
    assert {probe["path"] for probe in probes} | {
        runtime["metadata"]["annotations"]["prometheus.kserve.io/path"]
    } <= paths
    assert {probe["port"] for probe in probes} == {8000}
    assert runtime["spec"]["protocolVersions"] == [service["spec"]["predictor"]["model"]["protocolVersion"]]
    formats = [known["name"] for known in runtime["spec"]["supportedModelFormats"]]
    assert service["spec"]["predictor"]["model"]["modelFormat"]["name"] in formats
    assert service["spec"]["predictor"]["terminationGracePeriodSeconds"] > Limits().drain
