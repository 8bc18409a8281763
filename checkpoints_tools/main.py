"""The command line `rtp-jax-ckpt`: which command was meant, and how it ends.

    rtp-jax-ckpt inspect | convert | verify | merge-lora | quantize

Exit codes: 0 done, 1 something cannot be read or written, 2 wrong usage or a plan that cannot work,
3 verification failed, 130 interrupted.  Errors are one message, never a trace.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

from checkpoints_tools import convert, inspect, merge_lora, quantize, verify
from checkpoints_tools.report import Report
from rtp_jax.errors import RtpError, Unimplemented

DONE, FAILED, USAGE, DIFFERENT, INTERRUPTED = 0, 1, 2, 3, 130
COMMANDS = {
    "inspect": inspect,
    "convert": convert,
    "verify": verify,
    "merge-lora": merge_lora,
    "quantize": quantize,
}
# Errors about how a command was called, or about a plan that can never work out; by id, or by how
# the id begins.
USAGE_IDS = ("RTPJ-10", "RTPJ-11", "RTPJ-12", "RTPJ-21", "RTPJ-3030", "RTPJ-3032", "RTPJ-3033")
USAGE_IDS += ("RTPJ-3601", "RTPJ-3602", "RTPJ-3603", "RTPJ-3604", "RTPJ-3606", "RTPJ-3607")
USAGE_IDS += ("RTPJ-3611", "RTPJ-3613", "RTPJ-3614", "RTPJ-3615", "RTPJ-3616", "RTPJ-3618")
USAGE_IDS += ("RTPJ-3620", "RTPJ-3631", "RTPJ-3632", "RTPJ-3633")
VERIFICATION_IDS = {"RTPJ-3609"}

Run = Callable[[argparse.Namespace, Report], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    parsed = _parser().parse_args(arguments)
    report = Report(as_json=parsed.json)
    try:
        return parsed.run(parsed, report)
    except RtpError as error:
        if parsed.json:
            report.event("error", id=error.id, name=error.name, message=str(error))
        print(f"rtp-jax-ckpt: {error}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        print("rtp-jax-ckpt: interrupted; go on with --resume", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def exit_code(error: RtpError) -> int:
    """Say with which code an error ends the command."""
    if error.id in VERIFICATION_IDS:
        return DIFFERENT
    usage = error.id.startswith(USAGE_IDS) or isinstance(error, Unimplemented)
    return USAGE if usage else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rtp-jax-ckpt", description="Look into checkpoints, convert and compare them."
    )
    version = f"rtp-jax-ckpt {metadata.version('rtp_jax')}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        words = (module.__doc__ or "").split("\n", 1)[0]
        command = commands.add_parser(name, help=words, description=words, allow_abbrev=False)
        command.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
