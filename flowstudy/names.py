"""Kinds of net by name, as plain data: what plots call them.  `flowstudy.kinds` fills it."""

LABELS: dict[str, str] = {}
