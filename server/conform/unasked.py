"""The numbered cases that are not asked of a server from outside, each with its reason.

The tests of this repository ask them of fluxserve, with official clients and a worker that does as the test says.
"""

from __future__ import annotations

CLIENT = "it judges an official client"
CONTROL = "it needs a server that waits, fails or restarts at will"
NAMES = "it needs fal's host names to lead here"
RECEIVER = "it needs a web server that this one can call"
SIGHT = "whether work stopped is not seen from outside"

UNASKED: dict[int, tuple[str, str]] = {
    1: ("fal_client runs by two variables and a private authority", CLIENT),
    3: ("the queue is found by its host name alone", NAMES),
    4: ("fal_client without a variable, through a CONNECT proxy", NAMES),
    5: ("fal_client subscribes without a redirect", CLIENT),
    6: ("@fal-ai/client reaches the proxy endpoint only", CLIENT),
    7: ("a webhook asked for through the proxy endpoint is called", RECEIVER),
    8: ("@fal-ai/client by middleware over plain HTTP", CLIENT),
    9: ("a page of another origin in a browser", CLIENT),
    12: ("fal.apps and fal.toolkit", CLIENT),
    14: ("older versions of @fal-ai/client", CLIENT),
    15: ("older versions of fal_client", CLIENT),
    25: ("a path argument and a longer id reach one route", CLIENT),
    26: ("work stops when its caller leaves", SIGHT),
    27: ("a run of 150 s is waited for", CONTROL),
    32: ("workflows and comfy ids keep three segments", "it needs such an endpoint, which few servers have"),
    33: ("a legacy id is owner and alias", "it needs such an endpoint, which few servers have"),
    35: ("a start deadline ends in 504 by the user", CONTROL),
    37: ("a queue longer than the caller allows is 429", CONTROL),
    38: ("after two refusals exactly one request exists", CONTROL),
    39: ("a killed server still answers for what it took", CONTROL),
    55: ("a stream passes the proxy endpoint unbuffered", CONTROL),
    59: ("a crash on the last attempt is told once", CONTROL),
    61: ("after its time a result is gone", "it would take as long as the server keeps results"),
    67: ("clients that lose patience cancel", CLIENT),
    70: ("long events of wide characters arrive whole", "it needs an endpoint that takes and repeats 64 KB of prompt"),
    73: ("work stops when the reader of a stream leaves", SIGHT),
    74: ("fal.apps streams lines", CLIENT),
    78: ("@fal-ai/client over a WebSocket", CLIENT),
    80: ("an idle socket is closed and opened again", "it would take as long as the server's patience"),
    84: (
        "a socket outlives its token",
        "it would take as long as a token lives",
    ),
    89: ("when the CDN fails fal_client falls back", CLIENT),
    91: ("files in inputs of @fal-ai/client arrive", CLIENT),
    98: ("a good end is posted once and signed", RECEIVER),
    99: ("a rejected input is posted with its detail", RECEIVER),
    100: ("an output that is no JSON says so", RECEIVER),
    101: ("errors of a receiver are repeated, redirects are not", RECEIVER),
    102: ("a receiver that hangs delays nobody", RECEIVER),
    103: ("a webhook to the server's own machine is not called", RECEIVER),
    104: ("what was owed at a restart goes out", CONTROL),
    108: ("a 503 is asked once, a refused connection ten times", CLIENT),
}
