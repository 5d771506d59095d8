"""The work of decode processes for vLLM. This module imports no vLLM."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from video_pipeline.engine.base import Preparer

if TYPE_CHECKING:
    from video_pipeline.engine.vllm.compat import VllmConfig


class VllmPreparer(Preparer):
    """vLLM's own preparation of a prompt (tokens, pixel values, positions), run in a decode process
    so that the engine's process only passes the result on.

    It carries vLLM's configuration as bytes. So it can be unpickled without vLLM, and :meth:`start`
    raises the error that vLLM is not supported. Also, :meth:`start` may change its own copy of the
    configuration.
    """

    def __init__(self, vllm_config: VllmConfig, chat_template_kwargs: dict[str, Any]) -> None:
        self._pickled_config = pickle.dumps(vllm_config)
        self._chat_template_kwargs = chat_template_kwargs

    def start(self) -> None:
        from video_pipeline.engine.vllm.renderer import Renderer

        vllm_config = pickle.loads(self._pickled_config)
        self._renderer = Renderer(vllm_config, self._chat_template_kwargs)
        self._renderer.warm_up()

    def prepare(self, llm_inputs: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
        return self._renderer.prepare(llm_inputs, key)
