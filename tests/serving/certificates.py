"""Certificates for tests, made when they are needed: an authority, a server's, a client's."""

import subprocess
from pathlib import Path

KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
EXTENSIONS = "subjectAltName=DNS:localhost,IP:127.0.0.1"


def make_authority(folder: Path, name: str) -> None:
    """Write `name.key` and a self-signed `name.pem`."""
    _openssl(f"req -x509 -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem {KEY}", folder)


def make_certificate(folder: Path, name: str, authority: str) -> None:
    """Write `name.key` and `name.pem`, signed by an authority, for localhost."""
    (folder / "extensions").write_text(EXTENSIONS)
    _openssl(f"req -subj /CN={name} -keyout {name}.key -out {name}.csr {KEY}", folder)
    signer = f"-CA {authority}.pem -CAkey {authority}.key -CAcreateserial"
    files = f"-in {name}.csr -extfile extensions -out {name}.pem"
    _openssl(f"x509 -req -days 2 {signer} {files}", folder)


def _openssl(arguments: str, folder: Path) -> None:
    command = ["openssl", *arguments.split()]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
