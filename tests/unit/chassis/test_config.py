from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from services.chassis.config import EXIT_FAULTS, ConfigError, exit_with_faults, load


@dataclass(frozen=True)
class Common:
    address: str
    """Where to listen, as HOST:PORT."""
    metrics_port: int = 0
    """Port of the metrics;
    0 is none."""


@dataclass(frozen=True)
class Settings(Common):
    """A service of the tests."""

    etcd: tuple[str, ...] = ("127.0.0.1:7679",)
    """Endpoints of the store."""
    ratio: float = 0.01
    launch: bool = True
    device: Literal["auto", "cpu"] = "auto"
    cache_dir: Path = Path(".cache")
    otlp_endpoint: str | None = "collector:1"
    memory_bytes: int | None = None

    def faults(self) -> list[str]:
        found = []
        if self.metrics_port > 65535:
            found.append("--metrics-port must be below 65536")
        if not 0.0 <= self.ratio <= 1.0:
            found.append("--ratio must lie in [0, 1]")
        return found


def read(*argv: str, environ: Mapping[str, str] | None = None) -> Settings:
    return load(Settings, prog="test", argv=argv, environ=environ or {})


def test_defaults_hold_where_nothing_is_given() -> None:
    assert read("--address", "h:1") == Settings(address="h:1")


def test_every_kind_of_field_is_read_from_flags() -> None:
    settings = read(
        *("--address=h:1", "--metrics-port", "8600", "--etcd", "a:1, b:2", "--etcd", "c:3", "--ratio", "0.5"),
        *("--no-launch", "--device", "cpu", "--cache-dir", "/x/y", "--otlp-endpoint", "", "--memory-bytes", "7"),
    )

    assert settings == Settings(
        "h:1", 8600, ("a:1", "b:2", "c:3"), 0.5, False, "cpu", Path("/x/y"), None, memory_bytes=7
    )


def test_every_kind_of_field_is_read_from_the_environment() -> None:
    environ = {
        "MODELYARD_ADDRESS": "h:1", "MODELYARD_METRICS_PORT": "8600", "MODELYARD_ETCD": "a:1,b:2",
        "MODELYARD_RATIO": "0.5", "MODELYARD_LAUNCH": "no", "MODELYARD_DEVICE": "cpu", "MODELYARD_CACHE_DIR": "/x",
        "MODELYARD_OTLP_ENDPOINT": "", "MODELYARD_MEMORY_BYTES": "7", "MODELYARD_OF_ANOTHER_SERVICE": "x",
    }  # fmt: skip

    settings = read(environ=environ)

    assert settings == Settings("h:1", 8600, ("a:1", "b:2"), 0.5, False, "cpu", Path("/x"), None, memory_bytes=7)


def test_every_kind_of_field_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        'address = "h:1"\nmetrics-port = 8600\netcd = ["a:1", "b:2"]\nratio = 1\nlaunch = false\n'
        'device = "cpu"\ncache_dir = "/x"\notlp_endpoint = ""\nmemory_bytes = 7\n'
    )

    settings = read("--config", str(file))

    assert settings == Settings("h:1", 8600, ("a:1", "b:2"), 1.0, False, "cpu", Path("/x"), None, memory_bytes=7)


def test_flag_wins_over_environment_and_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('address = "file:1"\nmetrics_port = 1\nratio = 0.1\n')
    environ = {
        "MODELYARD_CONFIG": str(file),
        "MODELYARD_ADDRESS": "env:1",
        "MODELYARD_METRICS_PORT": "2",
    }

    settings = read("--address", "flag:1", environ=environ)

    assert (settings.address, settings.metrics_port, settings.ratio) == ("flag:1", 2, 0.1)


def test_all_faults_are_reported_at_once_with_their_sources(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('devise = "cpu"\nlaunch = "perhaps"\n')
    environ = {"MODELYARD_RATIO": "much", "MODELYARD_MEMORY_BYTES": "1.5"}

    with pytest.raises(ConfigError) as caught:
        read("--config", str(file), "--metrics-port", "70000", "--device=gpu", "--etdc", "x", environ=environ)

    assert set(caught.value.faults) == {
        "--etdc: not known; --etcd is",
        f"{file}: devise: not known; device is",
        "--address: required; give it, or set MODELYARD_ADDRESS",
        "--ratio: 'much' is not a number (from environment variable MODELYARD_RATIO)",
        f"--launch: 'perhaps' is neither true nor false (from file {file})",
        "--device: 'gpu' is none of auto, cpu (from flag --device)",
        "--memory-bytes: '1.5' is not a whole number (from environment variable MODELYARD_MEMORY_BYTES)",
        "--metrics-port must be below 65536 (--metrics-port from flag --metrics-port)",
    }


def test_check_of_the_class_names_where_the_value_came_from() -> None:
    with pytest.raises(ConfigError) as caught:
        read("--address", "h:1", environ={"MODELYARD_RATIO": "2"})

    assert caught.value.faults == (
        "--ratio must lie in [0, 1] (--ratio from environment variable MODELYARD_RATIO)",
    )  # fmt: skip


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "", "0x"])
def test_number_must_be_finite(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--ratio: .* is not a number"):
        read("--address", "h:1", f"--ratio={text}")


def test_flag_without_its_value_is_a_fault() -> None:
    with pytest.raises(ConfigError) as caught:
        read("--address", "--metrics-port", "1")

    assert "--address: needs a value" in caught.value.faults


def test_file_that_is_missing_or_broken_is_a_fault(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("address = ")

    with pytest.raises(ConfigError, match=r"cannot read .*absent\.toml: No such file"):
        read("--address", "h:1", "--config", str(tmp_path / "absent.toml"))
    with pytest.raises(ConfigError, match=r"broken\.toml is not TOML"):
        read("--address", "h:1", "--config", str(broken))


def test_help_prints_every_field_with_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read("--help")

    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "A service of the tests." in text
    assert "--address TEXT  [required]\n      Where to listen, as HOST:PORT." in text
    assert "Port of the metrics; 0 is none." in text
    assert "--launch | --no-launch  [default: true]" in text
    assert "--device auto|cpu  [default: auto]" in text
    assert "--etcd TEXT,...  [default: 127.0.0.1:7679]" in text


def test_faults_go_to_stderr_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    code = exit_with_faults(ConfigError("prog", ["one", "two"]))

    assert code == EXIT_FAULTS == 2
    assert capsys.readouterr().err.splitlines() == ["prog: one", "prog: two", "prog: --help lists what can be set"]
