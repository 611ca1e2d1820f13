"""The house's import rules hold, and each planted violation is caught."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("services", "yardctl", "benchmarks", "examples", "gen")


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=root,
        env={"PYTHONPATH": f"{root}:{root / 'gen'}", "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_import_contracts_hold() -> None:
    result = lint(ROOT)

    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("services/router/app.py", "import services.registry.apply", "no service imports another"),
        ("services/chassis/server.py", "import services.policy.placement", "no service imports another"),
        ("services/domain/model.py", "import os", "domain: the standard library only"),
        ("services/domain/host.py", "import grpc", "domain: the standard library only"),
        ("services/policy/placement.py", "import time", "policy: facts in, decision out"),
        ("services/router/pipeline.py", "import services.chassis.codec", "use cases speak to ports"),
        ("services/router/catalog.py", "import services.chassis.etcd", "one door to etcd"),
        ("yardctl/mesh.py", "import services.router.pipeline", "tools use contracts and chassis"),
        ("services/utils/__init__.py", "", "no service imports another"),
    ],
)
def test_a_planted_violation_is_caught(copy: Path, module: str, line: str, contract: str) -> None:
    path = copy / module
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else '"""New."""\n') + f"\n{line}\n")

    result = lint(copy)

    assert result.returncode != 0
    assert any(contract in broken and "BROKEN" in broken for broken in result.stdout.splitlines()) or (
        contract in result.stdout.partition("Broken contracts")[2]
    ), result.stdout
