"""What training will see, before it is paid for: of one picture, of a dataset, of a trainer's own files."""


def several(count: int, noun: str) -> str:
    """A number with its noun: `1 picture`, `2,000 entries`."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun[:-1]}ies" if noun.endswith("y") else f"{count:,} {noun}s"
