"""Serves MLflow's REST API by MLflow's own server, on files below a folder.

    python -m tests.mlflow_server FOLDER

The wheel of mlflow-skinny has the server's code; its page, which tests do not need, is in the wheel of mlflow alone.
"""

import os
import sys

from werkzeug.serving import make_server


def main(folder: str) -> None:
    """Serves on a free port, which it prints, until it is ended."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    for name in ("FILE_STORE", "REGISTRY_STORE", "ARTIFACT_ROOT"):
        os.environ[f"_MLFLOW_SERVER_{name}"] = folder
    from mlflow.server import app

    server = make_server("127.0.0.1", 0, app)
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
