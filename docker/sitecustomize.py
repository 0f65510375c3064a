"""Let no Ray node of this image start without asking for a token, whichever way its command comes.

Python runs this file at every start. Kubernetes, `docker exec` and a shell in between pass the entrypoint by, and an
environment can say anything; but a node is started by Python, and with this mode Ray starts none without a token.
"""

import os

if os.environ.get("OTSWEEP_OPEN") != "yes":
    os.environ["RAY_AUTH_MODE"] = "token"
