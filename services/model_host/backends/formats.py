"""What a file is, by its first bytes and its table of contents; nothing here parses a pickle.

pickle (joblib, most of scikit-learn's and old torch files) runs code when it is read. Backends ask here
first, so that such a file is refused whatever its name says.
"""

import enum
import stat
import struct
import zipfile
from pathlib import Path, PurePosixPath

from services.domain.errors import ArtifactRejected

MAX_MEMBERS = 100_000
"""Most files in an archive."""

MAX_RATIO = 100
"""An archive may be this many times as large unpacked; real weights hardly shrink at all."""

_MAX_HEADER_BYTES = 100 << 20
_ENCRYPTED = 0x1
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_PICKLE_PROTOCOLS = range(2, 6)
_COMPRESSED = (
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"\x04\x22\x4d\x18",
    b"\x28\xb5\x2f\xfd",
    b"\x78\x01",
    b"\x78\x5e",
    b"\x78\x9c",
    b"\x78\xda",
)


class Format(enum.Enum):
    """Formats that are told apart."""

    SAFETENSORS = "safetensors"
    TORCH_ZIP = "a torch archive"
    TORCH_EXPORT = "a torch.export archive"
    TORCH_SCRIPT = "a TorchScript archive"
    SKOPS = "a skops archive"
    PICKLE = "a pickle"
    COMPRESSED = "a compressed file, as joblib writes"
    OTHER = "of an unknown format"


def format_of(path: Path) -> Format:
    """What `path` is.

    Raises:
        ArtifactRejected: It is an archive with members that no honest one has.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"PK\x03\x04"):
        return _format_of_zip(path)
    if len(head) >= 2 and head[0] == 0x80 and head[1] in _PICKLE_PROTOCOLS:
        return Format.PICKLE
    if head.startswith(_COMPRESSED):
        return Format.COMPRESSED
    if len(head) > 8 and head[8:9] == b"{" and 2 <= struct.unpack_from("<Q", head)[0] <= _MAX_HEADER_BYTES:
        return Format.SAFETENSORS
    # Protocol 0 has no mark of its own; as text it begins with an opcode and ends with a full stop.
    if head[:1] in b"(cI]}N" and _ends_with(path, b"."):
        return Format.PICKLE
    return Format.OTHER


def _format_of_zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OverflowError, ValueError, struct.error) as error:
        raise ArtifactRejected(f"{path.name} is a broken archive: {error}") from error
    _check_members(path, members)
    names = {PurePosixPath(member.filename).name for member in members}
    if "schema.json" in names:
        return Format.SKOPS
    if names & {"archive_format", "serialized_exported_program.json"} or any("models/" in m.filename for m in members):
        return Format.TORCH_EXPORT
    if "constants.pkl" in names:
        return Format.TORCH_SCRIPT
    return Format.TORCH_ZIP if "data.pkl" in names else Format.OTHER


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise ArtifactRejected(f"{path.name} holds {len(members)} files, and {MAX_MEMBERS} are the most")
    if len({member.filename for member in members}) < len(members):
        raise ArtifactRejected(f"{path.name} holds two files of one name, of which readers choose differently")
    unpacked = 0
    for member in members:
        name = PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in member.filename or not member.filename.isprintable():
            raise ArtifactRejected(f"{path.name} holds a file whose name leads out of it")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ArtifactRejected(f"{path.name} holds a link")
        if member.flag_bits & _ENCRYPTED or member.compress_type not in _PACKED:
            raise ArtifactRejected(f"{path.name} holds a file that is encrypted or packed in a way no model is")
        unpacked += member.file_size
    if unpacked > MAX_RATIO * path.stat().st_size:
        raise ArtifactRejected(f"{path.name} unpacks to {unpacked} bytes, over {MAX_RATIO} times its size")


def _ends_with(path: Path, end: bytes) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 2))
        return file.read().rstrip(b"\n").endswith(end)
