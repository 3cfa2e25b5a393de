"""The same loop with its parts on Ray: the only folder of the core that imports it."""
