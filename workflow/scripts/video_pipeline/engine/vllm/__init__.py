"""The engine with vLLM. ``compat`` alone imports vLLM; ``preparer`` can be imported where vLLM is
missing."""
