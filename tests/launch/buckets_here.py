"""Data, run and checkpoints in a bucket on this machine: built, trained, resumed, sampled, exported, refused.

    pip install -e '.[gcs,launch]'
    python -m tests.launch.buckets_here

`tests/launch/bucket.py` is the bucket. Takes a few minutes, and ends with an error where something is not as
it should be.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fsspec
from etils import epath

from tests.data.conftest import write_folder
from tests.launch.bucket import environment
from tests.training.tiny_run import ROOT, metrics, write_latents
from ultrapixel_jax.data.records import CaptionedImages, open_dataset

PORT = 19024
RUN = "gs://bucket/run"
TRAIN = ["train.py", "tests/training/presets/stage_c.py", "--random-frozen", "--checkpoints.every", "2"]


def main() -> None:
    here = Path(tempfile.mkdtemp())
    fault = here / "fault"
    variables = {**os.environ, **environment(PORT), "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(here)}
    variables |= {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }

    def run(*words: str, code: int = 0) -> list[str]:
        """Lines that a command says, but for TensorStore's own."""
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=variables, text=True, timeout=400, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        lines = [line for line in done.stdout.splitlines() if "google_auth_provider" not in line]
        print(
            f"exit {done.returncode}: {' '.join(words)}"[:110],
            f"    {lines[-1]}"[:300] if lines else "",
            sep="\n",
        )
        assert done.returncode == code, done.stdout
        return lines

    os.environ.update(environment(PORT))
    command = [sys.executable, "-m", "tests.launch.bucket", str(PORT), str(fault)]
    with (here / "bucket.log").open("w") as log:
        bucket = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        time.sleep(5)
        write_latents("gs://bucket/data")  # type: ignore[arg-type]
        write_latents(here / "data")
        run(*TRAIN, "--data.path", str(here / "data"), "--output", str(here / "run"), "--steps", "6")
        remote = [*TRAIN, "--data.path", "gs://bucket/data", "--output", RUN, "--log.tensorboard"]

        # Built from the disk and from the bucket, refused while it writes; the same as on the disk.
        write_folder(here / "pictures_in", 6)
        files = fsspec.filesystem("gcs")
        files.put(str(here / "pictures_in") + "/", "bucket/pictures_in/", recursive=True)
        build = ["-m", "ultrapixel_jax.data.build", "--quiet", "--workers", "1", "--shard-images", "4"]
        fault.write_text("403 POST built")
        assert len(run(*build, str(here / "pictures_in"), "gs://bucket/built", code=2)) == 1
        fault.unlink()
        run(*build, str(here / "pictures_in"), "gs://bucket/built")
        run(*build, "gs://bucket/pictures_in", "gs://bucket/built_there")
        run(*build, str(here / "pictures_in"), str(here / "built"))
        places = ("gs://bucket/built", "gs://bucket/built_there", str(here / "built"))
        first, *others = (open_dataset(place, CaptionedImages) for place in places)
        for other in others:
            for i in range(len(first)):
                assert first.source[i] == other.source[i]

        # Refused while it saves, with one line; then resumed.
        fault.write_text("403 POST checkpoints")
        assert sum(line.startswith("error: ") for line in run(*remote, "--steps", "6", code=2)) == 1
        fault.unlink()
        run(*remote, "--steps", "4")
        run(*remote, "--steps", "6")

        (here / "theirs").mkdir()
        (here / "theirs" / "metrics.jsonl").write_bytes((epath.Path(RUN) / "metrics.jsonl").read_bytes())
        assert metrics(here / "theirs") == metrics(here / "run"), "other losses than on the disk"

        # A checkpoint that was not committed: neither resumed from nor sampled.
        files.invalidate_cache()
        files.copy("bucket/run/checkpoints/6", "bucket/run/checkpoints/9", recursive=True)
        files.rm("bucket/run/checkpoints/9/commit_success.txt")
        assert "continues after step 6" in run(*remote, "--steps", "8")
        small = ["--size", "256x256", "--steps", "2", "--steps-b", "2", "--prompt", "a"]
        run("sample.py", "--checkpoint", RUN, *small, "--output", str(here / "pictures"))
        run("-m", "convert", "--export", RUN, str(here / "exported"))
        run("-m", "convert", RUN, str(here / "converted"), "--component", "stage_c")
        files.put(str(here / "converted") + "/", "bucket/converted/", recursive=True)
        files.invalidate_cache()
        run("-m", "convert", "--export", "gs://bucket/converted", str(here / "again"))
        exported = [(here / name / "stage_c.safetensors") for name in ("exported", "again")]
        assert exported[0].read_bytes() == exported[1].read_bytes()

        # Refused or absent, before any work.
        fault.write_text("403 GET bucket")
        export = ["-m", "convert", "--export", RUN, str(here / "no")]
        for words in (["sample.py", "--checkpoint", RUN, *small], export, [*remote, "--steps", "9"]):
            assert len(run(*words, code=2)) == 1
        fault.unlink()
        assert len(run("sample.py", "--checkpoint", "gs://absent/run", *small, code=2)) == 1
        print("all as it should be")
    finally:
        bucket.terminate()


if __name__ == "__main__":
    main()
