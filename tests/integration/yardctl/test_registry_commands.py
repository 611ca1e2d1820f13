"""The commands that read and change the registry, on a real registry and etcd."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.support.etcd import EtcdProcess
from tests.support.ports import free_ports
from yardctl.cli import app

POOL = "kind: Pool\nmetadata: {name: spare}\nspec: {device_kind: CPU, memory_bytes: 64MiB, min_hosts: 0}\n"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a registry on an etcd of its own."""
    folder = tmp_path_factory.mktemp("registry")
    etcd = EtcdProcess(folder / "etcd")
    etcd.start()
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [sys.executable, "-m", "services.registry", "--address", address, "--etcd", etcd.endpoint]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--metrics-port", "0"], stderr=log)
    try:
        end_s = time.monotonic() + 60
        while run(address, "list").exit_code:
            assert time.monotonic() < end_s, (folder / "log").read_text()
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(30)
        etcd.stop()


def run(address: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--address", address])


def revision(address: str) -> int:
    return int(json.loads(run(address, "list", "-o", "json").stdout)["revision"])


def test_what_is_applied_is_listed_printed_as_a_manifest_changed_and_deleted(registry: str, tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text(POOL)
    before = revision(registry)

    planned = run(registry, "apply", "-f", str(path), "--dry-run")
    assert planned.exit_code == 0, planned.stderr
    assert f"dry run at revision {before}, nothing was changed: 1 created" in planned.stdout
    assert revision(registry) == before

    applied = run(registry, "apply", "-f", str(path), "--reason", "spare room", "-o", "json")
    assert json.loads(applied.stdout)["revision"] == before + 1

    printed = run(registry, "get", "pool", "spare")
    assert "memory_bytes: 64MiB" in printed.stdout
    path.write_text(printed.stdout)
    assert f"nothing to change at revision {before + 1}" in run(registry, "apply", "-f", str(path)).stdout

    path.write_text(POOL.replace("64MiB", "128MiB"))
    updated = run(registry, "apply", "-f", str(path), "--expected-revision", str(before + 1))
    assert f"revision {before + 2}: 1 updated" in updated.stdout
    assert "pool.memory_bytes" in updated.stdout
    old = run(registry, "get", "Pool", "spare", "--revision", str(before + 1), "-o", "json")
    assert json.loads(old.stdout)["spec"]["memory_bytes"] == "64MiB"

    deleted = run(registry, "delete", "pools", "spare", "--reason", "no need")
    assert deleted.exit_code == 0, deleted.stderr
    newest, _, oldest, *_ = json.loads(run(registry, "history", "-o", "json").stdout)
    assert (newest["reason"], newest["changes"][0]["action"]) == ("no need", "DELETE")
    assert (oldest["number"], oldest["reason"]) == (before + 1, "spare room")
    assert "spare room" in run(registry, "history").stdout


def test_faults_that_the_registry_finds_come_with_file_and_line(registry: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        POOL.replace("min_hosts: 0", "min_hosts: -1").replace("64MiB", "0")
        + "---\nkind: ModelVersion\nmetadata: {name: nobody}\nspec:\n  version: one\n  backend: {name: identity}\n"
    )
    before = revision(registry)

    refused = run(registry, "apply", "-f", str(path))

    assert refused.exit_code == 1
    *lines, last = refused.stderr.splitlines()
    places = {line.removeprefix(str(path)).split(": ")[0]: line for line in lines}
    assert {place.split(":")[1] for place in places} == {"3", "6", "8"}, refused.stderr
    assert any("ModelVersion/nobody/one: spec.version: 'one' is no semantic version" in line for line in lines)
    assert any("Pool/spare: spec.memory_bytes: 0 must be positive" in line for line in lines)
    assert last == f"yardctl: {len(lines)} faults, nothing was done"
    assert revision(registry) == before


def test_every_kind_of_the_page_on_objects_is_applied_listed_and_protected_while_in_use(
    registry: str, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "objects.md").read_text()
    path = tmp_path / "page.yaml"
    path.write_text("---\n".join(re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)))

    planned = run(registry, "apply", "-f", str(path), "--dry-run")
    assert planned.exit_code == 0, planned.stderr
    applied = run(registry, "apply", "-f", str(path), "-o", "json")
    assert applied.exit_code == 0, applied.stderr
    kinds = [change["key"]["kind"] for change in json.loads(applied.stdout)["changes"]]
    assert kinds == sorted(kinds, key=["Policy", "Tenant", "Pool", "Model", "ModelVersion", "Route", "Template"].index)

    printed = run(registry, "get", "route", "read-page").stdout
    again = tmp_path / "again.yaml"
    again.write_text(printed)
    assert "nothing to change" in run(registry, "apply", "-f", str(again)).stdout
    assert "tiers gold (band 1)" in run(registry, "list", "policies").stdout
    for arguments, users in (
        (("policy", "standard"), "Route/digits, Tenant/acme"),
        (("tenant", "acme"), "Model/sentiment"),
        (("modelversion", "digits-small", "--version", "1.1.0"), "Route/digits, Route/digits-canary"),
        (("route", "digits-best"), "Route/digits-always"),
        (("pool", "cpu"), "ModelVersion/digits-small/1.1.0"),
    ):
        refused = run(registry, "delete", *arguments)
        assert refused.exit_code == 1
        assert f"is still used by {users}" in refused.stderr, refused.stderr

    again.write_text(printed.replace("step: find", "step: seek"))
    refused = run(registry, "apply", "-f", str(again))
    line = 1 + printed.splitlines().index("          step: find")
    assert f"{again}:{line}:17: Route/read-page: spec.pipeline.steps[1].inputs[pixels].step: " in refused.stderr


def test_a_head_that_has_moved_and_what_does_not_exist_are_one_line(registry: str, tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text(POOL)

    for arguments, code, text in (
        (("apply", "-f", str(path), "--expected-revision", "999"), 1, "999"),
        (("get", "pool", "nobody"), 1, "nobody"),
        (("get", "modelversion", "nobody"), 2, "'nobody' has none"),
        (("get", "pool", "spare", "--version", "1.0.0"), 2, "a Pool has no --version"),
        (("list", "pods"), 2, "'pods' is no kind: use one of Model, ModelVersion, Route, Pool"),
        (("list", "--revision", "999"), 1, "999"),
        (("apply", "-f", str(tmp_path / "absent")), 1, "there is no file or folder"),
    ):
        answer = run(registry, *arguments)
        assert answer.exit_code == code, arguments
        (line,) = answer.stderr.strip().splitlines()
        assert line.startswith("yardctl: "), line
        assert text in line, line


def test_nobody_at_the_address_is_one_line_that_says_what_to_do(free_port: int) -> None:
    answer = run(f"127.0.0.1:{free_port}", "hosts")

    assert answer.exit_code == 1
    assert answer.stderr.strip() == (
        f"yardctl: the registry at 127.0.0.1:{free_port} cannot be reached: see 'yardctl status', or start a mesh with "
        "'yardctl up'"
    )


def test_a_registry_without_hosts_says_so(registry: str) -> None:
    assert run(registry, "hosts").stdout.strip() == "no host is listed"
    assert run(registry, "hosts", "-o", "json").stdout.strip() == "[]"


def test_a_template_is_instantiated_with_parameters_and_printed_so_that_it_reads_back(
    registry: str, tmp_path: Path
) -> None:
    path = tmp_path / "template.yaml"
    path.write_text(
        """
kind: Template
metadata: {name: pools}
spec:
  parameters: [{name: name}, {name: hosts, type: INTEGER, default: "1"}]
  objects:
    - kind: Pool
      metadata: {name: "made-${name}"}
      spec: {memory_bytes: 1GiB, min_hosts: "${hosts}"}
"""
    )
    assert run(registry, "apply", "-f", str(path)).exit_code == 0
    printed = run(registry, "get", "template", "pools").stdout
    path.write_text(printed)
    assert "nothing to change" in run(registry, "apply", "-f", str(path)).stdout
    assert "1 object of name, hosts" in run(registry, "list", "templates").stdout

    planned = run(registry, "instantiate", "pools", "-p", "name=a", "-p", "hosts=3", "--dry-run", "-o", "json")
    (item,) = json.loads(planned.stdout)["objects"]
    assert (item["metadata"]["name"], item["spec"]["min_hosts"]) == ("made-a", 3)
    made = run(registry, "instantiate", "pools", "-p", "name=a", "-p", "hosts=3")
    assert "1 created" in made.stdout, made.stderr
    again = run(registry, "instantiate", "pools", "-p", "name=a", "-p", "hosts=3")
    assert "nothing to change" in again.stdout

    refused = run(registry, "instantiate", "pools", "-p", "hosts=many")
    assert refused.exit_code == 1
    assert "parameters[name]: is not given and has no default" in refused.stderr
    assert "parameters[hosts]: 'many' is not a whole number" in refused.stderr
    for arguments, why in ((("-p", "name"), "'name' is no KEY=VALUE"), (("-p", "name=a", "-p", "name=b"), "twice")):
        usage = run(registry, "instantiate", "pools", *arguments)
        assert usage.exit_code == 2
        assert why in usage.stderr
    assert "no Template/pool; near it: pools" in run(registry, "instantiate", "pool").stderr
