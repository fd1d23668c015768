"""Run the Python in the variable LLAMAFU_CODE, a block of the documentation; say what it printed."""

import contextlib
import io
import json
import os

printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    exec(compile(os.environ["LLAMAFU_CODE"], "code", "exec"), {"__name__": "__main__"})  # noqa: S102 - our own pages
print(json.dumps(printed.getvalue()))
