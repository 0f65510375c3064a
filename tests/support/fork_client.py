"""Stand in for Python where a raylet starts a worker: have a fork server run the worker, and last as long as it does.

Usage: python -I -S fork_client.py SOCKET SETUP_WORKER DEFAULT_WORKER WORDS... It imports little: it runs every time.
"""

import array
import json
import os
import socket
import sys

SETUP = ("--language=", "--serialized-runtime-env-context=")
"""Words for Ray's own script that sets a worker's environment up; there is nothing to set up here."""

address, _, *words = sys.argv[1:]
words = [word for word in words if not word.startswith(SETUP)]
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(address)
asked = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
streams = array.array("i", (0, 1, 2))
connection.sendmsg([json.dumps(asked).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
connection.recv(64)
sys.exit(os.waitstatus_to_exitcode(int(connection.recv(64) or 9)) % 256)
