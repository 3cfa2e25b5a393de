"""What is generated of `serving/policy.proto`: `make proto`, or `python -m tests.protobuf`.

`policy_pb2.py` and its types are protoc's; the client, one file that can be copied alone, has the
same messages as a descriptor in its own text.
"""

from __future__ import annotations

import base64
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROTO = Path("bigdm_ray/serving/policy.proto")
CLIENT = ROOT / "bigdm_ray/client.py"
BEGIN, END = '_DESCRIPTOR = """\n', '"""\n'


def generated() -> dict[Path, str]:
    """The text of each generated file by its path; of the client, all of it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        subprocess.run(
            [
                sys.executable,
                *("-m", "grpc_tools.protoc", "-I."),
                *(f"--python_out={out}", f"--pyi_out={out}"),
                f"--descriptor_set_out={out / 'set'}",
                str(PROTO),
            ],
            cwd=ROOT,
            check=True,
        )
        made = {
            ROOT / path.relative_to(out): path.read_text() for path in out.rglob("policy_pb2.py*")
        }
        from google.protobuf.descriptor_pb2 import FileDescriptorSet

        (described,) = FileDescriptorSet.FromString((out / "set").read_bytes()).file
    text = CLIENT.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = textwrap.wrap(base64.b64encode(described.SerializeToString()).decode(), 100)
    return made | {CLIENT: before + BEGIN + "\n".join(lines) + "\n" + END + after}


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text)
