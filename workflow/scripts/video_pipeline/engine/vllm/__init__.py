"""The engine with vLLM. ``compat`` alone imports vLLM, and ``omni`` in vLLM's own workers;
``preparer`` can be imported where vLLM is missing."""
