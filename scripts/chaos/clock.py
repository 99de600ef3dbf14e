"""Wrong clocks: a library for LD_PRELOAD that is compiled on the spot, and a file for each process that says how wrong."""

import shutil
import struct
import subprocess
from pathlib import Path

__all__ = ["Clocks"]


class Clocks:
    """The clocks of our processes.

    Args:
        folder: For the library and the files.

    Attributes:
        why_not: Why there are none. Empty: there are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._library = folder / "clock.so"
        self.why_not = ""
        compiler = shutil.which("cc")
        if compiler is None:
            self.why_not = "no C compiler (cc), so no clock can be made wrong"
            return
        command = [
            compiler,
            "-O2",
            "-shared",
            "-fPIC",
            "-o",
            self._library,
            Path(__file__).with_name("clock.c"),
            "-ldl",
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            self.why_not = f"the library for wrong clocks cannot be compiled: {done.stderr[:200]}"

    def environment(self, name: str) -> dict[str, str]:
        """What a process needs in its environment."""
        if self.why_not:
            return {}
        self.step(name, 0)
        return {"LD_PRELOAD": str(self._library), "CHAOS_CLOCK": str(self._file(name))}

    def step(self, name: str, seconds: float) -> None:
        """Set the clock of a process, whenever it was or will be started, to so many seconds from the right time."""
        path = self._file(name)
        path.touch()
        with path.open("r+b") as file:
            file.write(struct.pack("=q", int(seconds * 1e9)))

    def _file(self, name: str) -> Path:
        return self._folder / f"clock-{name}"
