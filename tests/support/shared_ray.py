"""One Ray for all sweeps of a test worker, which join it by RAY_ADDRESS; its workers are forked with torch loaded.

It is on the loopback address and asks for a token of its own. Ray starts everything else as ever. Usage, by
`tests.support.commands`: python -m tests.support.shared_ray SOCKET CPUS; it ends when its standard input does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ray
from ray._private import services
from ray._private.node import Node

CLIENT = Path(__file__).with_name("fork_client.py")


def main() -> None:
    """Start Ray, print its address, and end it when standard input ends."""
    address, cpus = sys.argv[1:]
    started, own = services.start_ray_process, f"--python_worker_command={sys.executable} "

    def start(words: list[str], *given: Any, **options: Any) -> Any:
        client = f"{own}-I -S {CLIENT} {address} "
        return started([word.replace(own, client) for word in words], *given, **options)

    services.start_ray_process = start
    for unneeded in ("start_api_server", "start_monitor", "start_log_monitor"):
        setattr(Node, unneeded, lambda *_, **__: None)
    ray.init(
        address="local", num_cpus=int(cpus), object_store_memory=2 * 10**8, include_dashboard=False, log_to_driver=False
    )
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
