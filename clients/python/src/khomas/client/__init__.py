"""Thin client: grpcio and protobuf only."""
