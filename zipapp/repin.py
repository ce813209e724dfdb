#!/usr/bin/env python3
"""Write wheels.lock anew: which wheel, with which hash, each Python and platform gets.

    python3 zipapp/repin.py WHEELS_DIR

Asks pip for the versions below, one key at a time, and notes what came. Run it to raise
a version; read the difference before you commit it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import build_zipapp

HEADER = """\
# The wheels in tasksprint.pyz, for each key: package, version, file, SHA-256.
# Written by zipapp/repin.py. One list for each key and no markers: pip judges markers
# for the Python that runs it, not for the one that it downloads for.
"""


def versions(key: str) -> dict[str, str]:
    """Return the version of each package for a key."""
    python, _, platform = key.partition("-")
    return {
        # The first apsw that 3.10 can't have is 3.54.1.0.
        "apsw": "3.54.0.0" if python == "cp310" else "3.54.1.0",
        # 0.9.0 has no wheels for Intel Macs.
        "httptools": "0.8.0" if platform == "macos-x86_64" else "0.9.0",
        "orjson": "3.13.0",
        "psutil": "7.2.2",
    }


def main(folder: str) -> int:
    """Fetch every wheel into the folder and write the lock file."""
    os.makedirs(folder, exist_ok=True)
    lines = [HEADER]
    with tempfile.TemporaryDirectory() as scratch:
        pip = build_zipapp.find_pip(scratch)
        for key in build_zipapp.select_keys("all", [], ""):
            print(key, flush=True)
            wanted = [f"{name}=={version}" for name, version in versions(key).items()]
            with tempfile.TemporaryDirectory(dir=folder) as fetched:
                build_zipapp.pip_download(pip, key, wanted, fetched)
                for wheel in sorted(os.listdir(fetched)):
                    name, version = wheel.split("-")[:2]
                    path = os.path.join(fetched, wheel)
                    with open(path, "rb") as file:
                        digest = hashlib.sha256(file.read()).hexdigest()
                    lines.append(f"{key} {name} {version} {wheel} {digest}\n")
                    os.replace(path, os.path.join(folder, wheel))
    path = os.path.join(build_zipapp.HERE, "zipapp", "wheels.lock")
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
