"""The machine that engines are measured on: what it is, and what its sensors show meanwhile."""
