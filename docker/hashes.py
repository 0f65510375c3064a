"""Write down the hash of every file that the image installs, from pip's report of what it would install.

    pip install --dry-run --ignore-installed --report report.json -c constraints.txt '.[cluster]'
    python docker/hashes.py report.json > docker/hashes.txt

Names, versions and hashes alone: which index they come from is the builder's own business. To be run with the image's
Python, on Linux on x86-64.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    report = json.loads(Path(sys.argv[1]).read_text())
    lines = []
    for each in report["install"]:
        name, hashes = each["metadata"]["name"].lower(), each["download_info"].get("archive_info", {}).get("hashes", {})
        if name != "otsweep":
            lines.append(f"{name}=={each['metadata']['version']} --hash=sha256:{hashes['sha256']}")
    print("\n".join(["# Made by docker/hashes.py: what the image installs, on Linux on x86-64.", *sorted(lines)]))


if __name__ == "__main__":
    main()
