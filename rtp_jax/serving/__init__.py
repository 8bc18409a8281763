"""The doors: the gRPC service, its client, and the command line."""
