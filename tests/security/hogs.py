"""Programs that take more than their share, for agents to run. Each ends by itself, also where nothing bounds it."""

import textwrap

__all__ = ["HOGS", "command"]

HOGS = {
    # 1024 processes at most, for half a minute.
    "fork": """
        import os, signal, time
        for _ in range(10):
            os.fork()
            signal.alarm(30)
        time.sleep(60)
    """,
    # 2 GiB as fast as the machine gives them.
    "memory": """
        import time
        taken = []
        for _ in range(64):
            taken.append(bytearray(b"x") * (32 * 1024**2))
        time.sleep(30)
    """,
    "cpu": """
        import os, time
        for _ in range(3):
            os.fork()
        until = time.time() + 6
        while time.time() < until:
            pass
    """,
    # 4 GiB in files of 32 MiB.
    "disk": """
        import os, time
        for number in range(128):
            with open(f"big-{number}", "wb") as file:
                for _ in range(32):
                    file.write(os.urandom(1024**2))
        time.sleep(30)
    """,
    "files": """
        import os, time
        for folder in range(200):
            os.mkdir(f"many-{folder}")
            for number in range(1000):
                os.close(os.open(f"many-{folder}/{number}", os.O_CREAT | os.O_WRONLY))
        time.sleep(30)
    """,
    "home": """
        import os, time
        for number in range(128):
            with open(os.path.expanduser(f"~/big-{number}"), "wb") as file:
                for _ in range(32):
                    file.write(os.urandom(1024**2))
        time.sleep(30)
    """,
    "tmp": """
        import os
        for place in ("/tmp", "/dev/shm", "/", "/run", "/dev", "/var/tmp", "/etc"):
            written = 0
            try:
                with open(f"{place}/big", "wb") as file:
                    for _ in range(2048):
                        written += file.write(bytes(1024**2))
            except OSError as error:
                print(place, written // 1024**2, error.strerror)
            else:
                print(place, written // 1024**2, "all")
    """,
    "tmp files": """
        import os, time
        for number in range(300_000):
            os.close(os.open(f"/tmp/{number}", os.O_CREAT | os.O_WRONLY))
        time.sleep(30)
    """,
    # 2 GiB that no process has mapped, and none in a folder.
    "memfd": """
        import os, time
        for _ in range(64):
            file = os.memfd_create("big")
            for _ in range(32):
                os.write(file, bytes(1024**2))
        time.sleep(30)
    """,
    # Likewise, given back to the kernel page by page, which keeps it.
    "shared memory": """
        import mmap, time
        taken = []
        for _ in range(64):
            taken.append(mmap.mmap(-1, 32 * 1024**2))
            taken[-1][:] = bytes(32 * 1024**2)
            taken[-1].madvise(mmap.MADV_DONTNEED)
        time.sleep(30)
    """,
    "removed files": """
        import os, time
        taken = []
        for _ in range(128):
            taken.append(open("big", "wb"))
            os.unlink("big")
            for _ in range(32):
                taken[-1].write(os.urandom(1024**2))
        time.sleep(30)
    """,
    "many descriptors": """
        import os, time
        for _ in range(30):
            if os.fork() == 0:
                taken = [os.dup(0) for _ in range(250)]
                time.sleep(30)
        time.sleep(30)
    """,
    "descriptors": """
        import os
        taken = []
        try:
            for _ in range(100_000):
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            print(len(taken), error.strerror)
    """,
}


def command(hog, python="python3"):
    """A line for Bash that runs one."""
    return f"{python} - <<'HOG'\n{textwrap.dedent(HOGS[hog])}HOG"
