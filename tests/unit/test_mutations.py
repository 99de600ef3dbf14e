"""What `./scripts/faults --prove` breaks is still where it looks for it."""

import shutil
from pathlib import Path

import pytest

from scripts.chaos.mutations import MUTATIONS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what.partition(":")[0])
def test_a_mutation_can_be_made(mutation, tmp_path):
    names = {name for name, _, _ in mutation.changes}
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    mutation.make(tmp_path)
    for name in names:
        changed = (tmp_path / name).read_text()
        assert changed != (ROOT / name).read_text()
        compile(changed, name, "exec")
