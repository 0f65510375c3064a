"""A process that has imported the heavy libraries once, and forks a Python program whenever it is asked for one.

Starting `python -m sweep` costs some five seconds of a core for imports alone, and a worker of Ray five more for torch.
A fork has them already. What it then runs is the same program with the same words, environment, folder and streams; it
has a pid of its own, which can be killed. Tests of the start itself, and those that kill, use real starts.
"""

from __future__ import annotations

import array
import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn, Self

PATIENCE = 200.0
"""Seconds that the imports may take on a busy machine."""

MESSAGE_BYTES = 1 << 20
CLIENT = Path(__file__).with_name("fork_client.py")


class ForkServer:
    """A fork server of this process's own, which ends with it.

    Args:
        address: path of its socket; its log lies beside it.
        modules: what it imports before it forks.
    """

    def __init__(self, address: Path, modules: list[str]) -> None:
        self.address = address
        with open(address.with_suffix(".log"), "wb") as log:
            # Its standard input tells it when this process ends, however that comes.
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(address), *modules],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Closes its standard input, and waits for it.
        self.process.__exit__(None, None, None)

    def wait(self) -> None:
        """Return once it serves."""
        deadline = time.monotonic() + PATIENCE
        while not self.address.exists():
            assert self.process.poll() is None, self.address.with_suffix(".log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def parents(self) -> dict[int, int]:
        """For each process that was forked for a client elsewhere, the pid of the client."""
        record = self.address.with_suffix(".clients")
        rows = record.read_text().split("\n")[:-1] if record.exists() else []
        return {int(pid): int(client) for pid, client in (row.split() for row in rows)}


class ForkedProcess(subprocess.Popen[str]):
    """`subprocess.Popen` for `[sys.executable, "-m", MODULE, ...]`, forked by a server; its output is text.

    Args:
        server: the server, which has started.
    """

    def __init__(self, server: ForkServer, words: list[str], **options: Any) -> None:
        assert words[:2] == [sys.executable, "-m"]
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server.wait()
        self.connection.connect(str(server.address))
        super().__init__(words, text=True, **options)

    def _execute_child(self, *given: Any) -> None:
        """Have the server fork, in place of the standard library's own fork and exec."""
        words, _, _, _, _, folder, environment, _, _, _, *pipes = given[:16]
        stdin, _, _, stdout, _, stderr = pipes
        streams = [number if handle == -1 else handle for number, handle in enumerate((stdin, stdout, stderr))]
        send_request(self.connection, words[2:], streams, folder=folder, environment=environment)
        self._child_created = True
        self.pid = int(self.connection.recv(64))
        self._close_pipe_fds(*pipes)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and select.select([self.connection], [], [], 0)[0]:
            self._take_status()
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            if not select.select([self.connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self._take_status()
        return self.returncode

    def _take_status(self) -> None:
        status = self.connection.recv(64)
        self.returncode = os.waitstatus_to_exitcode(int(status)) if status else -signal.SIGKILL
        self.connection.close()


def send_request(
    connection: socket.socket, words: list[str], streams: list[int], *, folder: Any, environment: dict[str, str] | None
) -> None:
    """Ask for a fork: `words` are a module's name, or a script's path, and its words."""
    asked = {"words": words, "folder": os.fspath(folder or os.getcwd()), "environment": dict(environment or os.environ)}
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)
    handles = array.array("i", streams)
    connection.sendmsg([json.dumps(asked).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handles)])


def serve(address: str, modules: list[str]) -> dict[str, Any]:
    """Answer requests until this process's standard input ends; return, in a fork, what the fork is to run.

    The modules are imported when the first request comes, in its environment: Ray reads settings when it is imported.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{address}.new")
    listener.listen(64)
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    Path(f"{address}.new").rename(address)
    running: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([0, wake, listener], [], [])
        if wake in ready:
            os.read(wake, 4096)
            report_ended(running)
        if listener in ready:
            connection, _ = listener.accept()
            message, handles, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 3)
            if not message:
                connection.close()
                continue
            if modules:
                os.environ.clear()
                os.environ.update(json.loads(message)["environment"])
                # As for the shared Ray, whichever request comes first; a cluster that asks for no token minds none.
                os.environ["RAY_AUTH_MODE"] = "token"
            while modules:
                importlib.import_module(modules.pop())
            client = int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), sys.byteorder)
            pid = os.fork()
            if pid == 0:
                for each in (listener, connection, *running.values()):
                    each.close()
                signal.set_wakeup_fd(-1)
                os.close(wake)
                os.close(woken)
                for number, handle in enumerate(handles):
                    os.dup2(handle, number)
                    os.close(handle)
                return json.loads(message)
            for handle in handles:
                os.close(handle)
            with open(Path(address).with_suffix(".clients"), "a") as record:
                record.write(f"{pid} {client}\n")
            running[pid] = connection
            with contextlib.suppress(OSError):
                connection.send(str(pid).encode())
        if 0 in ready and not os.read(0, 4096):
            sys.exit()


def report_ended(running: dict[int, socket.socket]) -> None:
    """Send every client whose process has ended its status."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with contextlib.suppress(OSError), running.pop(pid) as connection:
            connection.send(str(status).encode())


def become(asked: dict[str, Any]) -> None:
    """Run in this fork what was asked for, as a Python started for it would."""
    for name in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    os.setsid()
    program, *sys.argv[1:] = asked["words"]
    if program.endswith(".py"):
        sys.argv[0] = program
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")
    else:
        sys.path[0] = asked["folder"]
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def main() -> NoReturn:
    address, *modules = sys.argv[1:]
    become(serve(address, modules))
    sys.exit()


if __name__ == "__main__":
    main()
