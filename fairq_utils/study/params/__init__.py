"""The params file: its sections, typed and checked, and reading one."""
