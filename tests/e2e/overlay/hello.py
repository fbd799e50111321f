"""The least that can answer in the pool's image: an HTTP server of the standard library. Says its age, as the pool does."""

import os
import signal
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import FrameType

PORT = 8080


def up_s() -> float:
    """Seconds since this process was started: field 22 of proc_pid_stat(5), in clock ticks of CLOCK_BOOTTIME."""
    started = int(Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


class Hello(BaseHTTPRequestHandler):
    """Answers every GET, the readiness probe's too."""

    def do_GET(self) -> None:
        """``hello``, and in Hearth-Pod the pod's name and age."""
        self.send_response(200)
        self.send_header("Hearth-Pod", f"{os.uname().nodename};up={up_s():.3f}")
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")


def end(_signal: int, _frame: FrameType | None) -> None:
    """Process 1 ignores a SIGTERM that it has no handler for: without one each pod would stay for its whole grace period."""
    sys.exit(0)


signal.signal(signal.SIGTERM, end)
# Not http.server's HTTPServer: it looks up the host's full name, which in a cluster is a question to DNS.
with socketserver.ThreadingTCPServer(("", PORT), Hello) as server:
    print(f"cold start: listening={up_s():.3f}", flush=True)  # noqa: T201 (a container's log)
    server.serve_forever()
