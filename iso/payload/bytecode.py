"""Compiles an environment's byte code anew, for the path where it now lives: ``python bytecode.py FOLDER PREFIX``.

Run by the environment's own Python (3.9 or newer) while FOLDER is not yet at PREFIX. What was compiled before is
compiled in the same way, and conda's records get the new digests.
"""

import hashlib
import json
import os
import sys
from pathlib import Path


def main(folder: Path, prefix: str) -> int:
    """Compile and record; 1 when something could not be compiled."""
    records = [
        (path, json.loads(path.read_text("utf-8"))) for path in sorted(folder.glob("conda-meta/*.json"))
    ]
    entries = {entry["_path"]: entry for _, record in records for entry in record["paths_data"]["paths"]}
    compiled = {name: source_of(name) for name in sorted(entries) if "/__pycache__/" in name}
    compiled = {name: source for name, source in compiled.items() if (folder / source).is_file()}
    if not compile_all(folder, prefix, sorted(set(compiled.values()))):
        return 1
    for name in compiled:
        data = (folder / name).read_bytes()
        entries[name].update(sha256_in_prefix=hashlib.sha256(data).hexdigest(), size_in_bytes=len(data))
    for name, entry in entries.items():  # text that names the prefix, whose length is in its size
        if entry["path_type"] == "unix_python_entry_point" or entry.get("file_mode") == "text":
            entry["size_in_bytes"] = (folder / name).stat().st_size
    for path, record in records:
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return 0


def source_of(name: str) -> str:
    """``lib/x/__pycache__/y.cpython-313.pyc`` → ``lib/x/y.py``."""
    above, _, file = name.rpartition("/__pycache__/")
    return f"{above}/{file.rsplit('.', 2)[0]}.py"


def compile_all(folder: Path, prefix: str, sources: "list[str]") -> bool:
    """Compile in a process for each processor; whether all of them ended well.

    By compileall as a program, as when the disc was made: what else a process has imported shows in the bytes.
    """
    command = [
        sys.executable,
        "-I",
        "-S",
        "-B",
        "-m",
        "compileall",
        "-q",
        "-f",
        "-s",
        str(folder),
        "-p",
        prefix,
    ]
    command += ["--invalidation-mode", "unchecked-hash", "-i"]
    workers = min(os.cpu_count() or 1, len(sources))  # given none, compileall compiles all of Python's own
    lists = [folder / f".compile-{number}" for number in range(workers)]
    for number, path in enumerate(lists):
        path.write_text("".join(f"{folder / source}\n" for source in sources[number::workers]), "utf-8")
    children = [os.spawnv(os.P_NOWAIT, sys.executable, [*command, str(path)]) for path in lists]
    ended = [os.waitpid(child, 0)[1] for child in children]
    for path in lists:
        path.unlink()
    return not any(ended)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
