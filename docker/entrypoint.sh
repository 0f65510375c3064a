#!/bin/sh
# Say in a line what would be refused or is dangerous; then run the command. That no Ray node starts without a token does
# not hang on this file: sitecustomize.py sees to it in every Python of the image.
set -eu

refuse() {
    echo "otsweep: $1" >&2
    exit 2
}

if [ "${OTSWEEP_OPEN:-}" != yes ]; then
    # Ray's job API runs whatever it is sent, as this container's user. So no node starts without a token.
    [ "${RAY_AUTH_MODE:-token}" = token ] ||
        refuse "RAY_AUTH_MODE is not token: anyone who reaches this node could run anything on it (OTSWEEP_OPEN=yes starts it nevertheless)"
    case "$*" in
    "ray start"*)
        [ -n "${RAY_AUTH_TOKEN:-}" ] || [ -s "${RAY_AUTH_TOKEN_PATH:-${HOME:-}/.ray/auth_token}" ] ||
            refuse "RAY_AUTH_TOKEN is not set: Ray's job API runs whatever it is sent, so it asks for a token"
        ;;
    esac
fi

case "${OTSWEEP_BIND:-127.0.0.1}" in
127.* | localhost | ::1) ;;
*)
    echo "otsweep: warning: ports are published on $OTSWEEP_BIND, beyond this machine. Ray's job API runs whatever it is sent by anyone who has the token, and neither it nor MLflow encrypts what passes, tokens and passwords among it: let only a trusted network reach them" >&2
    ;;
esac

exec "$@"
