"""Prints tritonclient's descriptors: a FileDescriptorSet in hexadecimal. Runs in the clients' venv."""
# mypy: ignore-errors

import json

from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

found = descriptor_pb2.FileDescriptorSet()
for module in (model_config_pb2, service_pb2):
    module.DESCRIPTOR.CopyToProto(found.file.add())
print(json.dumps(found.SerializeToString().hex()))
