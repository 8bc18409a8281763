#!/usr/bin/env bash
# Make the stubs of rtp_jax/wire/ from its .proto files:  tools/generate_wire.sh
#
# The oldest tools that pyproject.toml allows make them, in an environment of their own, because
# stubs run with newer libraries but not with older ones.  Then `pytest tests/wire` says whether a
# descriptor changed, and how to accept that.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
python3 -m venv "$environment"
"$environment/bin/pip" install --quiet grpcio-tools==1.81.1 protobuf==6.33.5
"$environment/bin/python" -m grpc_tools.protoc --proto_path=. \
	--python_out=. --pyi_out=. --grpc_python_out=. rtp_jax/wire/*.proto
