"""A worker process that only pretends to draw: `python -m pipelines.fake --fd N --model fake: ...`. No torch.

Takes the arguments of `pipelines.worker`; those about weights and devices mean nothing to it.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from functools import partial

from models.arguments import resolve_all
from models.fake import parse_options
from pipelines.fake.worker import FakeWorker
from pipelines.worker.link import Link
from pipelines.worker.signals import leave_signals_to_the_node


def main() -> int:
    """Run until told to stop. Returns the exit status."""
    leave_signals_to_the_node()
    parser = argparse.ArgumentParser(prog="python -m pipelines.fake")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the node")
    parser.add_argument("--device", default="auto", help="what to call the device")
    parser.add_argument("--model", action="append", required=True, help="fake: and its options")
    arguments, _ = parser.parse_known_args()
    link = Link(socket.socket(fileno=arguments.fd))
    specs = resolve_all(arguments.model)
    try:
        FakeWorker(link, arguments.device, specs, parse_options(specs[0].source), partial(_die, link)).serve()
    finally:
        link.close()
    return 0


def _die(link: Link) -> None:
    """What was sent before arrives, so that the same requests end in the same way every time."""
    link.close()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the link's threads sit in recv
