"""Renders the chart as Helm does: run by the interpreter of `.venv-deploy`, which has Helm as a library.

Reads {"folder", "name", "values"} in JSON from standard input, writes {"rendered": {path: text}} or {"error": text}.
"""

import json
import sys

from helm_python import chart
from helm_python.errors import HelmError

asked = json.load(sys.stdin)
try:
    if asked.get("lint"):
        said = chart.lint(asked["folder"], asked["values"], strict=True)
        json.dump({"messages": said["messages"], "errors": said["errors"]}, sys.stdout)
    else:
        loaded = chart.Chart.load(asked["folder"])
        loaded.validate_schema(asked["values"])
        json.dump({"rendered": loaded.render(asked["values"], name=asked["name"], namespace="models")}, sys.stdout)
except HelmError as error:
    json.dump({"error": str(error)}, sys.stdout)
