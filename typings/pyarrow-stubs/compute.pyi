# pyarrow creates the functions of this module while it is imported, so a type checker cannot find them in its source.
from typing import Any

def __getattr__(name: str) -> Any: ...
