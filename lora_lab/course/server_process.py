"""The process that is JupyterLab: `python -P server_process.py HOST PORT FOLDER`, started by serve.py alone.

It lives until its standard input is closed, then stops its kernels and itself. It imports nothing of ours: the server
needs no torch.
"""

import os
import signal
import sys
import threading
from contextlib import suppress


def main(host: str, port: str, folder: str) -> None:
    """Serve `folder` on host:port. The token comes by JUPYTER_TOKEN, where other users of the machine cannot see it."""
    from jupyterlab.labapp import LabApp

    app = LabApp.initialize_server(
        argv=[
            f"--ServerApp.ip={host}",
            f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={folder}",
            "--ServerApp.open_browser=False",
            "--ServerApp.allow_root=True",
            "--KernelManager.shutdown_wait_time=2",  # a busy kernel is not waited for any longer
            "--LabApp.news_url=None",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ]
    )

    def outlive_nobody() -> None:
        with suppress(OSError):
            os.read(0, 1)  # returns when the parent closes its end, or is gone
        app.io_loop.add_callback(app.stop)

    threading.Thread(target=outlive_nobody, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and decides
    app.start()


if __name__ == "__main__":
    main(*sys.argv[1:])
