"""``python -m video_pipeline.engine.vllm`` writes the list of names of the installed vLLM."""

import json

from video_pipeline.config.vllm_names import LIST
from video_pipeline.engine.vllm.compat import ENGINE_ARGUMENTS, SAMPLING_PARAMETERS

if __name__ == "__main__":
    names = {"vllm": ENGINE_ARGUMENTS, "sampling": SAMPLING_PARAMETERS}
    LIST.write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
