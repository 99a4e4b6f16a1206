"""Operations that torch.vmap has no rule for."""

import torch


class quiet_fallback:
    """vmap says in a warning that it loops over an operation that it has no rule for; that is no user's concern."""

    def __enter__(self) -> None:
        torch._C._functorch._set_vmap_fallback_warning_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch._C._functorch._set_vmap_fallback_warning_enabled(True)
