#!/bin/sh
# Refuse what is dangerous, or warn of it; then run the command.
set -eu

refuse() {
    echo "otsweep: $1" >&2
    exit 2
}

case "$*" in
"ray start"*)
    # Ray's job API runs whatever it is sent, as this container's user. So no node starts without a token.
    if [ "${RAY_AUTH_MODE:-}" = token ]; then
        [ -n "${RAY_AUTH_TOKEN:-}" ] || [ -s "${RAY_AUTH_TOKEN_PATH:-/nonexistent}" ] ||
            refuse "RAY_AUTH_TOKEN is not set: Ray's job API runs whatever it is sent, so it asks for a token"
    elif [ "${OTSWEEP_OPEN:-}" != yes ]; then
        refuse "RAY_AUTH_MODE is not token: anyone who reaches this node could run anything on it (OTSWEEP_OPEN=yes starts it nevertheless)"
    fi
    ;;
esac

case "${OTSWEEP_BIND:-127.0.0.1}" in
127.* | localhost | ::1) ;;
*)
    echo "otsweep: warning: ports are published on $OTSWEEP_BIND, beyond this machine. Ray's job API runs whatever it is sent by anyone who has the token, MLflow's server asks nobody who they are, and neither encrypts: let only a trusted network reach them" >&2
    ;;
esac

exec "$@"
