"""What optional parts of this project need, and how to get it."""

import re
from importlib.metadata import PackageNotFoundError, requires


def how_to_install(extra: str) -> str:
    """The command that installs what an extra of this project names; works wherever the project came from.

    By the packages and not as `fluxserve[extra]`, for which pip would look up fluxserve itself on an index.
    """
    try:
        named = requires("fluxserve") or []
    except PackageNotFoundError:  # run from a folder, without having been installed
        named = []
    wanted = [each.partition(";")[0].strip() for each in named if re.search(rf"extra == .{re.escape(extra)}.$", each)]
    return "pip install " + " ".join(f"'{each}'" for each in wanted or [f"fluxserve[{extra}]"])
