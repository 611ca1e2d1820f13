"""What Envoy hands calls to: an echo that costs as little as one in Python can, on a native gRPC server."""

import argparse

from pygrpc_native import EVENT_CALL, NativeGrpcFront

from benchmarks.bare_echo import METHOD

AT_ONCE = 256
WAIT_MS = 500


def main() -> None:
    """Answer every call with its request, until ended by a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    front = NativeGrpcFront(f"127.0.0.1:{arguments.port}", [(METHOD, False)], io_threads=1)
    front.start()
    while (events := front.recv_batch(AT_ONCE, WAIT_MS)) is not None:
        for kind, call_id, _method, payload, _client in events:
            if kind == EVENT_CALL and payload is not None:
                front.respond(call_id, payload)


if __name__ == "__main__":
    main()
