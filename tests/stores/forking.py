"""Runs `mvjax` in forks of one process that has imported it: reads a JSON list a line, writes pid and status.

What a fork prints goes to a file, the list's first item; the rest are its arguments.
"""

import json
import os
import sys
import traceback


def main() -> None:
    from mvjax import cli
    from mvjax.eval import during_training, model  # noqa: F401
    from mvjax.plan import dry_run  # noqa: F401
    from mvjax.train import fit  # noqa: F401

    for line in sys.stdin:
        log, *words = json.loads(line)
        pid = os.fork()
        if pid == 0:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(out, stream)
            status = 1
            try:
                status = cli.main(words)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
