"""The command line: which command was meant, and how it ends.

    rtp-jax generate | chat | serve | route | cluster | members | status | bench | info | plan
          | kv-layers | doctor

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.  Errors are one message, never a
trace.  Nothing here imports the engine, which takes seconds, before a command needs it.
Read next: `serve_command.py`, `route_command.py`, `generate_command.py`, `bench_command.py`,
`look_commands.py`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from rtp_jax.errors import InvalidArgument, RtpError, Unimplemented
from rtp_jax.serving.bench_command import bench
from rtp_jax.serving.cluster.command import cluster
from rtp_jax.serving.generate_command import chat, generate
from rtp_jax.serving.kv_command import kv_layers
from rtp_jax.serving.look_commands import doctor, info, plan
from rtp_jax.serving.members_command import members
from rtp_jax.serving.route_command import route
from rtp_jax.serving.serve_command import serve
from rtp_jax.serving.status_command import status

FAILED, USAGE, INTERRUPTED = 1, 2, 130
COMMANDS = {  # name -> what runs, what it does
    "generate": (generate, "continue prompts"),
    "chat": (chat, "talk with a model"),
    "serve": (serve, "serve a model over gRPC"),
    "route": (route, "serve a model over gRPC with the workers of a cluster"),
    "cluster": (cluster, "bring workers and routers up, scale them, end them"),
    "members": (members, "write a router's file of workers from names in DNS"),
    "status": (status, "show the workers of a router, and what they do"),
    "bench": (bench, "measure an engine or a server"),
    "info": (info, "say what a model or a server is"),
    "plan": (plan, "show how the memory would be used, without starting"),
    "kv-layers": (kv_layers, "measure which layers may keep KV in fewer bits"),
    "doctor": (doctor, "check this installation"),
}
# What is wrong about how a command was called: options, settings, files of the server.
USAGE_IDS = ("RTPJ-10", "RTPJ-11", "RTPJ-12", "RTPJ-52", "RTPJ-55", "RTPJ-56", "RTPJ-70")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _run(arguments)
    except RtpError as error:
        print(f"rtp-jax: {error}", file=sys.stderr)
        return USAGE if is_usage(error) else FAILED
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _run(arguments: list[str]) -> int:
    parser = _overview()
    if not arguments or arguments[0].startswith("-"):
        parser.parse_args(arguments)
        parser.print_help(sys.stderr)
        return USAGE
    name = parser.parse_args(arguments[:1]).command
    run, words = COMMANDS[name]
    command = argparse.ArgumentParser(prog=f"rtp-jax {name}", description=words, allow_abbrev=False)
    return run(command, arguments[1:])


def is_usage(error: RtpError) -> bool:
    """Tell whether a command was called wrongly, rather than that it failed."""
    return error.id.startswith(USAGE_IDS) and isinstance(error, InvalidArgument | Unimplemented)


def _overview() -> argparse.ArgumentParser:
    lines = [f"  {name:10} {words}" for name, (_, words) in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="rtp-jax",
        description="An LLM inference engine on JAX.",
        epilog="\n".join(["commands:", *lines, "", "`rtp-jax COMMAND --help` shows its options."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    version = f"rtp-jax {metadata.version('rtp_jax')}, jax {metadata.version('jax')}"
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below")
    return parser


if __name__ == "__main__":
    sys.exit(main())
