"""`make check-deps`: pip-audit over constraints.txt, in an environment of its own under .venv.

Exit status: 0 nothing known, 1 something is, 3 where the advisories could not be read: unchecked is not clean, and a job that
may be offline can tell the two apart.
"""

import json
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
OWN = ROOT / ".venv" / "check-deps"  # pip-audit brings a dozen packages that ours must not have to agree with
VERSION = "2.10.1"


def main() -> int:
    python = OWN / "bin" / "python"
    if not (OWN / "bin" / "pip-audit").is_file():
        print(f"installing pip-audit {VERSION} into {OWN.relative_to(ROOT)} (once)", flush=True)
        venv.create(OWN, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"pip-audit=={VERSION}"]
        if subprocess.run(install).returncode:
            return unchecked("pip-audit cannot be installed")
    options = ["--requirement", ROOT / "constraints.txt", "--no-deps", "--disable-pip", "--format", "json"]
    asked = subprocess.run([OWN / "bin" / "pip-audit", *options, "--progress-spinner", "off"], capture_output=True, text=True)
    try:
        found = json.loads(asked.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        said = [line for line in asked.stderr.splitlines() if line.strip()]
        return unchecked(said[-1][:300] if said else f"pip-audit ended with status {asked.returncode}")
    return told(found)


def told(found: list[dict]) -> int:
    """Say what is known of each package."""
    skipped = [f"{one['name']}: {one['skip_reason']}" for one in found if "skip_reason" in one]
    bad = [(one, known) for one in found for known in one.get("vulns", ())]
    for one, known in bad:
        mended = ", ".join(known["fix_versions"]) or "no version yet"
        print(f"{one['name']} {one['version']}: {known['id']} (mended in {mended})")
    if len(skipped) == len(found):
        return unchecked(f"{skipped[0]}, and so for every other package" if skipped else "constraints.txt names no package")
    for line in skipped:
        print(f"not checked: {line}")
    print(
        f"{len(found) - len(skipped)} packages of constraints.txt checked, {len(skipped)} not; {len(bad)} known vulnerabilities"
    )
    return 1 if bad else 0


def unchecked(why: str) -> int:
    print(f"error: the advisories could not be read, so NOTHING was checked: {why}", file=sys.stderr)
    return 3


if __name__ == "__main__":
    sys.exit(main())
