"""Small YAML files that an operator writes: members, quotas, a cluster."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

MAX_FILE_BYTES = 1 << 20


def read_yaml(path: Path, bad: Callable[[Path, str], Exception]) -> Any:
    """Return what a file says; `bad` makes the error of a path and the reason."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise bad(path, f"has more than {MAX_FILE_BYTES} bytes")
        return yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise bad(path, f"cannot be read ({error.__class__.__name__})") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise bad(path, f"is not YAML: {str(error).splitlines()[0]}") from error
