"""On the PYTHONPATH of a job: processes of one verb come to harm. FAULT is `VERB:crash`, which ends them with 1."""

import os
import sys

_verb, _, _fault = os.environ.get("FAULT", "").partition(":")
if _fault == "crash" and _verb in getattr(sys, "orig_argv", ()):
    key = os.environ.get("WANDB_API_KEY", "")
    print(f"this {_verb} crashes by order, and sees a key of {len(key)} letters", file=sys.stderr)
    os._exit(1)
