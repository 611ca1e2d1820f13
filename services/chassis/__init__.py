"""What every service stands on: gRPC, etcd and OpenTelemetry live here and nowhere else."""
