#!/bin/sh
# Print the lines for docker/.env that hold the base images to the digests they have now. Run it anew to get security
# fixes: an image that is held to its digest gets none by itself. Needs Docker and the network.
#
#   docker/digests.sh >> docker/.env
set -eu
for name in PYTHON_IMAGE POSTGRES_IMAGE; do
    image=$(sed -n "s/.*\${$name:-\([^}@]*\).*/\1/p" "$(dirname "$0")/compose.yaml" | head -n 1)
    digest=$(docker buildx imagetools inspect "$image" --format '{{.Manifest.Digest}}')
    echo "$name=$image@$digest"
done
