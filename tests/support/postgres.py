"""PostgreSQL's own server for tests: on the loopback address, behind a password, with its data in a test's folder."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.ray_nodes import end, start, wait_for

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
"""Where Debian keeps the newest version's."""
ASK_ALL = ("--auth-host=scram-sha-256",)


def need_postgres() -> None:
    """Skips where it is not installed."""
    if find_spec("psycopg") is None or not PROGRAMS:
        pytest.skip("needs PostgreSQL (apt-get install postgresql) and psycopg")


class Postgres:
    """A server with one superuser and one database, as its image makes them.

    Args:
        folder: for everybody to enter; PostgreSQL never runs as root, and gets a folder below.
        initdb: further words for `initdb`.
    """

    def __init__(
        self, folder: Path, *, port: int, user: str, password: str, database: str, initdb: tuple[str, ...] = ASK_ALL
    ) -> None:
        self.folder, self.port, self.user = folder, port, user
        data, secret = folder / "database", folder / "password"
        data.mkdir()
        secret.write_text(password)
        if os.getuid() == 0:
            for path in (data, secret):
                shutil.chown(path, pwd.getpwnam("postgres").pw_uid)
        words = [f"--pgdata={data}", f"--pwfile={secret}", f"--username={user}", "--no-sync", *initdb]
        done = subprocess.run([*self.program("initdb"), *words], capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr
        secret.unlink()
        words = ["-D", str(data), "-p", str(port), "-k", "", "-c", "listen_addresses=127.0.0.1"]
        self.process = start([*self.program("postgres"), *words], folder, "postgres", dict(os.environ))
        try:
            ready = ["pg_isready", "-h", "127.0.0.1", "-p", str(port)]
            wait_for(lambda: subprocess.run(ready, capture_output=True).returncode == 0, 60)
            create = ["psql", self.uri("postgresql", "postgres"), "--command", f"CREATE DATABASE {database}"]
            subprocess.run(create, env={**os.environ, "PGPASSWORD": password}, check=True, capture_output=True)
        except BaseException:
            end(self.process)
            raise

    def stop(self) -> None:
        """End it at once, whoever is connected: SIGTERM would wait for them."""
        self.process.send_signal(signal.SIGINT)
        end(self.process)

    def program(self, name: str) -> list[str]:
        # In the place of its caller, so that who ends that ends the program.
        alone = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.getuid() == 0 else []
        return [*alone, str(PROGRAMS[0] / name)]

    def uri(self, dialect: str, database: str) -> str:
        """Without the password, which PGPASSWORD gives."""
        return f"{dialect}://{self.user}@127.0.0.1:{self.port}/{database}"
