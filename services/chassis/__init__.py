"""What every service stands on: gRPC, etcd and OpenTelemetry live here and nowhere else."""

import os

# gRPC's core reads this when it is first imported. Its info lines, one for each connection that goes
# away, would stand between our lines of JSON on stderr.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
