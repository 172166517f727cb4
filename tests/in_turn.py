"""Run several commands of one script in this process: SCRIPT, then a JSON list of lists of words.

After the output of each command stands its exit code between two null characters."""

import json
import os
import runpy
import sys
import traceback


sys.path[0] = os.getcwd()  # in place of this file's folder, as if the script had been started
script, commands = sys.argv[1], json.loads(sys.argv[2])
for words in commands:
    sys.argv, code = [script, *words], 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
        if isinstance(code, str):  # Python prints it and exits with 1
            print(code, file=sys.stderr)
            code = 1
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(1, f"\0{code}\0".encode())
