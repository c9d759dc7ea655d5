#!/usr/bin/env bash
# What is worth measuring in nine minutes on one GPU of 80 GB, in order of worth, each part within its own time.
#
#   bash benchmarks/on_gpu.sh OUT          # released sizes
#   bash benchmarks/on_gpu.sh OUT tiny     # tiny networks on any device, to try the script
#
# OUT gets a JSON file for each part that came to its end, log.txt, and results.json with all of them and with how
# each part ended, which is printed last. PYTHON is the interpreter (python3); WHEELS may name a folder of wheels
# to install beside it first. Weights are random and made on the device; PyTorch is timed where diffusers is there.
set -uo pipefail
cd "$(dirname "$0")/.."
out="$(mkdir -p "$1" && cd "$1" && pwd)"
kind="${2:-full}"
python="${PYTHON:-python3}"
total="${TOTAL:-540}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" XLA_PYTHON_CLIENT_MEM_FRACTION=0.92

if [ -n "${WHEELS:-}" ]; then
  extra="$(mktemp -d)"
  "$python" -m pip install --quiet --no-deps --no-index --target "$extra" "$WHEELS"/*.whl >>"$out/log.txt" 2>&1
  export PYTHONPATH="$PYTHONPATH:$extra"
fi
if [ "$kind" = tiny ]; then
  config=configs/tiny.py small=512x512 large=768x768 training=tiny dtype=float32 tokens=64
else
  config=configs/full.py small=2048x2048 large=4096x4096 training=full-96 dtype=bfloat16 tokens=9216
fi

began=$SECONDS
ended=""
# part NAME SECONDS MODULE ARGUMENTS...: within SECONDS, and within what is left of all.
part() {
  local name=$1 limit=$2 left=$((total - (SECONDS - began))) from=$SECONDS code=0
  shift 2
  if [ "$left" -lt 3 ]; then
    ended="$ended $name=no-time-left:0"
    return
  fi
  echo "== $name" | tee -a "$out/log.txt"
  timeout -k 5 "$((limit < left ? limit : left))" "$python" -m "$@" --json "$out/$name.json" \
    > >(tee -a "$out/log.txt") 2>>"$out/log.txt" || code=$?
  ended="$ended $name=$code:$((SECONDS - from))"
}

common=(--config "$config" --dtype "$dtype" --no-torch --no-cached)
part parity 90 benchmarks.parity
part picture-small 150 benchmarks.sampling image "${common[@]}" --sizes "$small" --repeat 3
part picture-large 170 benchmarks.sampling image "${common[@]}" --sizes "$large" --repeat 2
part profile 110 benchmarks.profiling c-high --config "$config" --dtype "$dtype" --size "$large"
part mlp 90 benchmarks.layers mlp --tokens "$tokens" --dtype "$dtype" --repeat 20
part torch 120 benchmarks.torch_times c-plain b a --config "$config" --dtype "$dtype" --sizes "$large" --no-compile
part picture-scanned 110 benchmarks.sampling image "${common[@]}" --sizes "$large" --repeat 1 --scanned
part training 150 benchmarks.training "$training" --steps 3
part components 150 benchmarks.sampling c-plain b a-tiled clip "${common[@]}" --sizes "$large" --repeat 5
for kernels in pallas mosaic; do
  ULTRAPIXEL_JAX_MLP=$kernels part "components-$kernels" 90 benchmarks.sampling c-plain b "${common[@]}" --sizes "$large" --repeat 5
done
part torch-compiled 200 benchmarks.torch_times c-plain b --config "$config" --dtype "$dtype" --sizes "$large"

"$python" - "$out" "$kind" $ended <<'PYTHON'
import json, pathlib, platform, sys

out, kind, *ended = sys.argv[1:]
parts = {}
for word in ended:
    name, _, how = word.partition("=")
    code, _, seconds = how.partition(":")
    said = {"0": "done", "124": "out of time", "137": "out of time", "no-time-left": "not begun: no time left"}
    file = pathlib.Path(out, f"{name}.json")
    found = json.loads(file.read_text()) if file.is_file() else None
    parts[name] = {"ended": said.get(code, f"failed with {code}"), "seconds": int(seconds), "found": found}
text = json.dumps({"kind": kind, "python": platform.python_version(), "parts": parts}, indent=1)
pathlib.Path(out, "results.json").write_text(text + "\n")
for part in parts.values():  # printed shortly: the ten longest kernels are enough
    if isinstance(part["found"], dict) and "kernels" in part["found"]:
        part["found"]["kernels"] = part["found"]["kernels"][:10]
print(json.dumps(parts))
PYTHON
