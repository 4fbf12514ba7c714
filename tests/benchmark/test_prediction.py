import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from affect_jax.runs.model_file import write

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read the memory from")
def test_script_measures_speed_and_memory_of_prediction(classifier, tmp_path):
    write(classifier, tmp_path / "model.safetensors", "")
    for number in range(5):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((30 + number, 50, 3), 40 * number, np.uint8))
    command = [sys.executable, str(ROOT / "scripts" / "benchmark_predict.py"), f"--images={tmp_path}"]
    command += [f"--classifier={tmp_path / 'model.safetensors'}", "--detector=whole", "--frame_size=48,64"]
    command += ["--num_frames=4", "--batch_sizes=1,3", "--rounds=2", "--memory_frames=40"]
    done = subprocess.run([*command, f"--out={tmp_path / 'rows.json'}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    timed, memory = ([row for row in rows if row["work"] == work] for work in ("read", "memory"))
    assert [row["implementation"] for row in timed] == ["affect_jax, batch 1", "affect_jax, batch 3"]
    assert all(0 < row["frames_per_second"] <= row["frames_per_second_best"] for row in timed)
    assert [row["frames"] for row in memory] == list(range(4, 41, 4))
