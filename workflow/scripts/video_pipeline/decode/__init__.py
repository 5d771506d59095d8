"""The decode processes, which read and prepare samples beside the engine."""
